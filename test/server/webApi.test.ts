import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { Authenticate } from '../../server/dist/access/principal.js';
import { readConfig } from '../../server/dist/config.js';
import { ServiceError } from '../../server/dist/errors.js';
import { hasPage } from '../../server/dist/web/pageRoute.js';
import { patienceMs } from '../patience.mjs';
import { jobSpec, openApi, openApiWithArtifact, refusalOf } from './apiServer.js';
import { claim, execution, readyDataset, stepEvent, submit } from './parts.js';
import { serveWeb } from './webServer.js';

const post = async (url: string, method: string, body: unknown, headers: Record<string, string> = {}) => {
  const response = await fetch(`${url}/api/relora.v1.${method}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  const text = await response.text();
  return { status: response.status, text, json: () => JSON.parse(text) as never };
};

/** Unlike fetch, allows setting Host, Origin and other headers that a browser sets itself. */
const raw = async (url: string, path: string, headers: Record<string, string>): Promise<number> =>
  await new Promise((resolve, reject) => {
    const { hostname, port } = new URL(url);
    const sent = httpRequest({ hostname, port, path, method: 'POST', headers }, (response) => {
      response.resume();
      resolve(response.statusCode!);
    });
    sent.on('error', reject);
    sent.end('{}');
  });

const info = '/api/relora.v1.ServerService/GetServerInfo';
const json = { 'content-type': 'application/json' };

describe('the API of the page', () => {
  it('is the API: the same answers and the same errors as over gRPC, in JSON', async () => {
    const api = await openApi();
    const url = await serveWeb(api);
    await readyDataset(api.parts);
    const created = await post(url, 'TrainingService/CreateJob', {
      spec: { ...jobSpec(), adapter: { rank: 4, cycle_step_count: 5 }, stepCount: 20 },
      jobId: 'by-json',
    });
    expect(created.status).toBe(200);
    const { job } = await api.training.getJob({ name: 'jobs/by-json' });
    expect((created.json() as { job: object }).job).toMatchObject({
      name: 'jobs/by-json',
      state: 'JOB_STATE_QUEUED',
      lastSequence: String(job!.lastSequence),
      attempt: 0,
      etag: job!.etag,
      spec: { adapter: { rank: 4, cycleStepCount: 5 }, priority: 0 },
    });

    const wrong = { spec: { ...jobSpec(), stepCount: 0, adapter: { rank: 0 } } };
    const refused = await post(url, 'TrainingService/CreateJob', wrong);
    const overGrpc = await refusalOf((options) => api.training.createJob(wrong as never, options));
    const { error } = refused.json() as {
      error: {
        message: string;
        status: string;
        details: { '@type': string; reason: string; fieldViolations?: { field: string }[] }[];
      };
    };
    expect([refused.status, error.status, error.message]).toEqual([
      400,
      'INVALID_ARGUMENT',
      overGrpc.message,
    ]);
    expect(error.details[0]).toMatchObject({ reason: 'JOB_SPEC_INVALID' });
    expect(error.details[1]!.fieldViolations!.map(({ field }) => field)).toEqual(overGrpc.fields);
  });

  it('names what is wrong with the JSON itself', async () => {
    const url = await serveWeb(await openApi());
    const messageOf = async (method: string, body: unknown): Promise<string> => {
      const { status, json: read } = await post(url, method, body);
      expect(status).toBe(400);
      return (read() as { error: { message: string } }).error.message;
    };
    const get = 'TrainingService/GetJob';
    expect(await messageOf(get, { nam: 'jobs/x' })).toBe(
      'nam: expected a field of relora.v1.GetJobRequest, got a name that is none',
    );
    expect(await messageOf('TrainingService/CreateJob', { spec: { stepCount: 'ten' } })).toMatch(
      /^step_count: expected a CreateJobRequest as JSON, got expected number/,
    );
    expect(await messageOf('TrainingService/CreateJob', { spec: { kind: 'LORA' } })).toBe(
      'request: expected a word of relora.v1.JobKind, got "LORA"',
    );
    expect(await messageOf(get, [])).toMatch(/^request: expected a GetJobRequest as JSON/);
    expect(await messageOf(get, '{"name"')).toMatch(/^request: expected JSON, got /);
  });

  it('takes no message that gRPC would not take', async () => {
    const url = await serveWeb(await openApi({ RELORA_MESSAGE_BYTES_MAX: String(1 << 20) }));
    const large = await post(url, 'TrainingService/GetJob', { name: 'x'.repeat((1 << 20) + 1) });
    expect([large.status, large.text]).toEqual([429, expect.stringContaining('MESSAGE_TOO_LARGE')]);
    const names = Array.from({ length: 2000 }, (_, index) => `jobs/j${index}`);
    const narrow = await serveWeb(await openApi({ RELORA_MESSAGE_FIELDS_MAX: '1000' }));
    const many = await post(narrow, 'TrainingService/CompareJobs', { names });
    expect([many.status, many.text]).toEqual([
      400,
      expect.stringContaining('names: expected at most 200 entries'),
    ]);
  });

  it('has no method that is sent a stream, and no other path', async () => {
    const url = await serveWeb(await openApi());
    for (const method of [
      'DatasetService/UploadDataset',
      'TrainingService/WatchJob',
      'TrainingService/Nothing',
      'Nothing',
    ])
      expect((await post(url, method, {})).status, method).toBe(404);
    expect((await fetch(url + info)).status).toBe(405);
    expect((await fetch(`${url}/api/jobs/x/events`, { method: 'POST' })).status).toBe(405);
    expect((await fetch(`${url}/api/`)).status).toBe(404);
    expect((await fetch(`${url}/page/../package.json`)).status).toBe(404);
    expect((await fetch(`${url}/page/%2e%2e/package.json`)).status).toBe(404);
  });

  it('refuses what a page of another site can send from a browser', async () => {
    const api = await openApi();
    const url = await serveWeb(api, ['train.example.org']);
    const { host } = new URL(url);
    const answers = {
      'a program': [{ host, ...json }, 200],
      'its own page': [{ host, origin: url, 'sec-fetch-site': 'same-origin', ...json }, 200],
      'its page under a name that is set': [
        { host: 'train.example.org', origin: 'https://train.example.org', ...json },
        200,
      ],
      localhost: [{ host: 'localhost:80', ...json }, 200],
      'an address of IPv6': [{ host: '[::1]:9464', ...json }, 200],
      'another origin': [{ host, origin: 'https://evil.example', ...json }, 403],
      'an origin that hides': [{ host, origin: 'null', ...json }, 403],
      'another port of this machine': [{ host, origin: 'http://127.0.0.1:1', ...json }, 403],
      'another site, as the browser says': [{ host, 'sec-fetch-site': 'cross-site', ...json }, 403],
      'a name that was made to point here': [
        { host: 'evil.example', origin: 'http://evil.example', ...json },
        403,
      ],
      'a name with an address in it': [{ host: '127.0.0.1.evil.example', ...json }, 403],
      'a user in the name': [{ host: 'localhost@evil.example', ...json }, 403],
      'a form': [{ host, 'content-type': 'text/plain' }, 415],
      'no type': [{ host }, 415],
    } as const;
    for (const [what, [headers, status]] of Object.entries(answers))
      expect(await raw(url, info, headers), what).toBe(status);
  });
});

/** The port's answers to raw bytes, until it ends the connection. */
async function answersTo(url: string, bytes: string): Promise<string[]> {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  onTestFinished(() => void socket.destroy());
  let text = '';
  socket.setEncoding('latin1').on('data', (piece) => (text += String(piece)));
  socket.on('error', () => {});
  socket.write(bytes, 'latin1');
  await once(socket, 'close');
  return [...text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map((match) => match[1]!);
}

describe('bytes that no client sends', () => {
  const hidden = 'GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n';
  const call = `POST ${info} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n`;

  const smuggling = [
    ['two lengths', `${call}content-length: 2\r\ncontent-length: 40\r\n\r\n{}${hidden}`],
    [
      'a length and chunks',
      `${call}content-length: 7\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n${hidden}`,
    ],
    [
      'chunks and a length',
      `${call}transfer-encoding: chunked\r\ncontent-length: 7\r\n\r\n0\r\n\r\n${hidden}`,
    ],
    ['a space before the colon', `${call}transfer-encoding : chunked\r\n\r\n0\r\n\r\n${hidden}`],
    ['an encoding twice', `${call}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n${hidden}`],
    ['an encoding that is none', `${call}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n${hidden}`],
    ['a length with a sign', `${call}content-length: +2\r\n\r\n{}${hidden}`],
    ['a length that is folded', `${call}content-length:\r\n 2\r\n\r\n{}${hidden}`],
    ['a line that ends early', `${call}x: y\rcontent-length: 2\r\n\r\n{}${hidden}`],
    ['a zero in a header', `${call}x: a\0b\r\n\r\n${hidden}`],
    ['chunks of a negative size', `${call}transfer-encoding: chunked\r\n\r\n-1\r\n\r\n${hidden}`],
    ['no host', `GET /api/session HTTP/1.1\r\n\r\n${hidden}`],
  ] as const;

  it('are refused whole where two readers could part them differently', async () => {
    const url = await serveWeb(await openApi());
    for (const [what, bytes] of smuggling) expect(await answersTo(url, bytes), what).toEqual(['400']);
  });

  const paths = [
    '/../../../../etc/passwd',
    '/page/../../package.json',
    '/page/..%2f..%2fpackage.json',
    '/page/%2e%2e/%2e%2e/package.json',
    '/page/..%5c..%5cpackage.json',
    '/page/%00',
    '/page//etc/passwd',
    '/api/jobs/..%2f..%2fetc/artifacts/x/passwd',
    '/api/jobs/x/artifacts/..%2f..%2f..%2f/passwd',
    '/api/jobs/x/artifacts/weights/..%2f..%2f..%2f..%2fetc%2fpasswd',
    '/api/jobs/x/artifacts/weights/%00',
    '/api/jobs/%ff/events',
    '//etc/passwd',
    'http://localhost/etc/passwd',
    'http://169.254.169.254/latest/meta-data',
  ];

  it('find no file by any path', async () => {
    const url = await serveWeb(await openApi());
    for (const path of paths) {
      const request = `GET ${path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n`;
      const [status, ...more] = await answersTo(url, request);
      expect(['400', '404'], path).toContain(status);
      expect(more, path).toEqual([]);
    }
  });

  it('have no header of theirs in an answer', async () => {
    const url = await serveWeb(await openApi());
    for (const name of [
      'x%0d%0aset-cookie:%20a=b',
      'x%0aset-cookie:%20a=b',
      '%e5%98%8d%e5%98%8aset-cookie:a=b',
    ])
      for (const path of [
        `/api/jobs/${name}/events`,
        `/api/jobs/x/artifacts/y/${name}`,
        `/api/${name}`,
        `/${name}`,
      ]) {
        const answer = await fetch(url + path);
        expect(['400', '404'], path).toContain(String(answer.status));
        expect(answer.headers.get('set-cookie'), path).toBe(null);
      }
  });

  it('that metadata cannot hold are no fault of the server', async () => {
    const api = await openApi({}, { authenticate: loggedIn });
    const url = await serveWeb({ ...api, authenticate: loggedIn });
    const statusOf = async (...headers: string[]) => {
      const lines = [
        'host: localhost',
        'connection: close',
        'content-type: application/json',
        'content-length: 2',
        ...headers,
      ];
      return (await answersTo(url, `POST ${info} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n{}`)).join();
    };
    const known = 'authorization: Bearer reader';
    expect(await statusOf('authorization: Bearer \xe9')).toBe('401');
    expect(await statusOf('cookie: relora-token=a%0Ab')).toBe('401');
    expect(await statusOf('cookie: relora-token=%C3%A9')).toBe('401');
    expect(await statusOf(known, 'relora-tenant: \xe9')).toBe('400');
    for (const header of ['relora-!: x', 'relora-x-bin: x', 'user-agent: \xe9', 'x-request-id: \xe9'])
      expect(await statusOf(known, header), header).toBe('200');
  });

  it('of JSON without end are refused by their field, and the server serves on', async () => {
    const url = await serveWeb(await openApi({ RELORA_MESSAGE_BYTES_MAX: String(1 << 20) }));
    const deep = 200_000;
    for (const body of [
      '['.repeat(deep) + ']'.repeat(deep),
      `${'{"spec":'.repeat(100_000)}{}${'}'.repeat(100_000)}`,
      `{"spec":{"model":${'['.repeat(deep)}${']'.repeat(deep)}}}`,
      `{"labels":{"__proto__":{"polluted":"yes"}}}`,
      `{"spec":{"stepCount":1e400}}`,
    ])
      expect((await post(url, 'TrainingService/CreateJob', body)).status, body.slice(0, 40)).toBe(400);
    expect(Object.hasOwn(Object.prototype, 'polluted')).toBe(false);
    expect((await post(url, 'ServerService/GetServerInfo', {})).status).toBe(200);
  });
});

/** Messages of an event stream until the server ends it, or the given number has arrived. */
async function eventsOf(
  url: string,
  headers: Record<string, string> = {},
  countMax = Infinity,
  onEvent: (id: number) => void = () => {},
) {
  const over = new AbortController();
  const response = await fetch(url, { headers, signal: over.signal });
  expect(response.headers.get('content-type')).toBe('text/event-stream');
  const found: { id: number; event: { sequence: string; heartbeat?: object; final: boolean } }[] = [];
  let text = '';
  for await (const piece of response.body!.pipeThrough(
    new TextDecoderStream() as never,
  ) as unknown as AsyncIterable<string>) {
    text += piece;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const [id, data] = text.slice(0, end).split('\n');
      found.push({
        id: Number(id!.slice('id: '.length)),
        ...(JSON.parse(data!.slice('data: '.length)) as { event: never }),
      });
      text = text.slice(end + 2);
      onEvent(found.at(-1)!.id);
      if (found.length === countMax) {
        over.abort();
        return found;
      }
    }
  }
  return found;
}

describe('the events of a job as Server-Sent Events', () => {
  it('are all of the journal, and come back after Last-Event-ID without a gap or a repetition', async () => {
    const { api, job } = await openApiWithArtifact();
    const url = `${await serveWeb(api)}/api/${job}/events`;
    const { job: ended } = await api.training.getJob({ name: job });
    const all = await eventsOf(url);
    expect(all.map(({ id }) => id)).toEqual(
      Array.from({ length: ended!.lastSequence }, (_, index) => index + 1),
    );
    expect(all.map(({ id, event }) => [id, event.final])).toEqual(
      all.map(({ event }, index) => [Number(event.sequence), index === all.length - 1]),
    );

    const first = await eventsOf(url, {}, 7);
    const rest = await eventsOf(url, { 'last-event-id': String(first.at(-1)!.id) });
    expect([...first, ...rest].map(({ id }) => id)).toEqual(all.map(({ id }) => id));
    expect(await eventsOf(url, { 'last-event-id': String(all.length) })).toEqual([]);
  });

  it('begin at once and beat where a job has nothing new', async () => {
    const api = await openApi({ RELORA_HEARTBEAT_SECONDS: '0.1' });
    await readyDataset(api.parts);
    const { id: jobId, lastSequence } = await submit(api.parts);
    const url = `${await serveWeb(api)}/api/jobs/${jobId}/events?after_sequence=${lastSequence}`;
    const beats = await eventsOf(url, {}, 2);
    expect(beats.map(({ id, event }) => [id, event.heartbeat !== undefined])).toEqual([
      [lastSequence, true],
      [lastSequence, true],
    ]);
  });

  it('come as they are stored, and end with the server', async () => {
    const api = await openApi();
    await submit(api.parts);
    const { id: jobId, attempt } = await claim(api.parts);
    const url = `${await serveWeb(api)}/api/jobs/${jobId}/events`;
    const present = eventsOf(url, {}, 8);
    await api.parts.attempts.started({ jobId, attempt }, execution, 0);
    for (let step = 0; step < 5; step++)
      await api.parts.attempts.append({ jobId, attempt }, [stepEvent(step)]);
    expect((await present).map(({ id }) => id)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    let whole: ReturnType<typeof eventsOf> | undefined;
    await new Promise<void>((resolve) => {
      whole = eventsOf(url, {}, Infinity, (id) => id === 8 && resolve());
    });
    api.stopping.abort();
    expect((await whole!).map(({ id }) => id)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('end for a client that does not read them, which keeps its connection from nobody', async () => {
    const api = await openApi({ RELORA_READER_SILENCE_SECONDS: '0.3' });
    await submit(api.parts);
    const { id: jobId, attempt } = await claim(api.parts);
    await api.parts.attempts.started({ jobId, attempt }, execution, 0);
    // More than the system buffers of an answer.
    for (let step = 0; step < 40_000; step += 1000)
      await api.parts.attempts.append(
        { jobId, attempt },
        Array.from({ length: 1000 }, (_, index) => stepEvent(step + index)),
      );
    const watchers = async () =>
      (await api.metrics.registry.getSingleMetric('relora_watchers')!.get()).values[0]?.value ?? 0;
    const { hostname, port } = new URL(await serveWeb(api));
    const socket = connect(Number(port), hostname);
    onTestFinished(() => void socket.destroy());
    socket.pause().write(`GET /api/jobs/${jobId}/events HTTP/1.1\r\nhost: localhost\r\n\r\n`);
    await expect.poll(watchers).toBe(1);
    await expect.poll(watchers, { timeout: patienceMs }).toBe(0);
  });

  it('are refused as over gRPC before they begin', async () => {
    const { api, job } = await openApiWithArtifact();
    const url = await serveWeb(api);
    const none = await fetch(`${url}/api/jobs/nobody/events`);
    expect([none.status, await none.text()]).toEqual([404, expect.stringContaining('JOB_NOT_FOUND')]);
    const beyond = await fetch(`${url}/api/${job}/events`, { headers: { 'last-event-id': '100000' } });
    expect([beyond.status, await beyond.text()]).toEqual([
      400,
      expect.stringContaining('SEQUENCE_BEYOND_END'),
    ]);
    const words = await fetch(`${url}/api/${job}/events`, { headers: { 'last-event-id': 'x' } });
    expect(words.status).toBe(400);
  });
});

describe('the files of artifacts by GET', () => {
  it('are whole or from an offset, with their hash, as a file to save', async () => {
    const { api, job, artifact } = await openApiWithArtifact();
    const url = `${await serveWeb(api)}/api/${artifact}/config.json`;
    const whole = await fetch(url);
    const bytes = Buffer.from(await whole.arrayBuffer());
    expect(bytes.toString()).toBe('0123456789');
    expect(whole.headers.get('etag')).toBe(`"${createHash('sha256').update(bytes).digest('hex')}"`);
    expect(whole.headers.get('content-length')).toBe('10');
    expect(whole.headers.get('content-disposition')).toBe("attachment; filename*=UTF-8''config.json");

    const part = await fetch(url, { headers: { range: 'bytes=4-' } });
    expect([part.status, part.headers.get('content-range'), await part.text()]).toEqual([
      206,
      'bytes 4-9/10',
      '456789',
    ]);
    const head = await fetch(url, { method: 'HEAD' });
    expect([head.headers.get('content-length'), await head.text()]).toEqual(['10', '']);
    const missing = await fetch(`${await serveWeb(api)}/api/${job}/artifacts/none/config.json`);
    expect([missing.status, await missing.text()]).toEqual([
      404,
      expect.stringContaining('ARTIFACT_NOT_FOUND'),
    ]);
    expect((await fetch(url, { headers: { range: 'bytes=11-' } })).status).toBe(400);
  });
});

describe('the page', () => {
  it('is there by default where this machine alone reaches the port, and a setting elsewhere', () => {
    const at = (address: string, page = 'auto'): boolean =>
      hasPage(
        readConfig({
          RELORA_HTTP_ADDRESS: address,
          RELORA_PAGE: page,
          RELORA_INSECURE: 'plain-text,no-login',
        }),
      );
    expect(['127.0.0.1:0', 'localhost:1', '[::1]:1', '127.8.8.8:1'].map((address) => at(address))).toEqual([
      true,
      true,
      true,
      true,
    ]);
    expect(
      ['0.0.0.0:0', '[::]:1', '10.0.0.1:1', 'example.org:1', '127.0.0.1.evil.example:1'].map((address) =>
        at(address),
      ),
    ).toEqual([false, false, false, false, false]);
    expect([at('0.0.0.0:1', 'on'), at('127.0.0.1:1', 'off')]).toEqual([true, false]);
  });

  it('loads nothing from elsewhere and cannot be framed; its files are asked for again cheaply', async () => {
    const url = await serveWeb(await openApi());
    const page = await fetch(url);
    const text = await page.text();
    const policy = page.headers.get('content-security-policy')!;
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toMatch(/unsafe|http|\*/);
    const files = [...text.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1]!);
    expect(files.length).toBeGreaterThan(3);
    for (const file of files) {
      const answer = await fetch(url + file);
      expect([answer.status, answer.headers.get('content-type')], file).toEqual([
        200,
        expect.stringMatching(/^(text\/(css|javascript)|image\/svg)/),
      ]);
      const again = await fetch(url + file, { headers: { 'if-none-match': answer.headers.get('etag')! } });
      expect(again.status).toBe(304);
    }
    for (const path of ['/jobs', '/jobs/some-job', '/compare?jobs=a,b', '/queue', '/datasets/x', '/server'])
      expect(await (await fetch(url + path)).text(), path).toBe(text);
  });
});

const loggedIn: Authenticate = async ({ authorization }) => {
  const role = { 'Bearer reader': 'viewer', 'Bearer writer': 'trainer' }[authorization ?? ''] as
    'viewer' | 'trainer' | undefined;
  if (role === undefined) throw new ServiceError('NOT_AUTHENTICATED', { cause: 'the token is not known' });
  return { name: 'someone', tenant: 'default', role };
};

describe('the login of the page', () => {
  it('keeps the token in a cookie that no script and no other site has, for calls, events and files alike', async () => {
    const api = await openApi({}, { authenticate: loggedIn });
    const url = await serveWeb({ ...api, authenticate: loggedIn });
    await readyDataset(api.parts);
    const { id } = await submit(api.parts);
    expect((await fetch(url)).status).toBe(200);
    expect((await fetch(`${url}/api/session`)).status).toBe(401);
    expect((await fetch(`${url}/api/jobs/${id}/events`)).status).toBe(401);
    expect((await post(url, 'TrainingService/GetJob', { name: `jobs/${id}` })).status).toBe(401);

    const login = async (token: string) =>
      await fetch(`${url}/api/session`, { method: 'POST', headers: json, body: JSON.stringify({ token }) });
    expect((await login('guess')).status).toBe(401);
    expect((await login('guess')).headers.get('set-cookie')).toBe(null);
    // Another site can submit a form, which must not log somebody in with a token of the attacker.
    const form = await fetch(`${url}/api/session`, { method: 'POST', body: '{"token":"reader"}' });
    expect([form.status, form.headers.get('set-cookie')]).toEqual([415, null]);
    const entered = await login('reader');
    const set = entered.headers.get('set-cookie')!;
    expect(await entered.json()).toEqual({ name: 'someone', tenant: 'default', role: 'viewer' });
    expect(set).toMatch(/^relora-token=reader; Path=\/api; HttpOnly; SameSite=Strict; Max-Age=\d+$/);
    const cookie = { cookie: `other=1; ${set.split(';')[0]}` };
    expect((await post(url, 'TrainingService/GetJob', { name: `jobs/${id}` }, cookie)).status).toBe(200);
    expect((await eventsOf(`${url}/api/jobs/${id}/events`, cookie, 1)).length).toBe(1);
    const refused = await post(url, 'TrainingService/CancelJob', { name: `jobs/${id}` }, cookie);
    expect([refused.status, refused.text]).toEqual([403, expect.stringContaining('ROLE_TOO_LOW')]);
    const other = { ...cookie, authorization: 'Bearer writer' };
    expect((await post(url, 'TrainingService/CancelJob', { name: `jobs/${id}` }, other)).status).toBe(200);
    // Not an error of ours, so it is not logged.
    const broken = { cookie: 'relora-token=%' };
    expect((await post(url, 'TrainingService/GetJob', { name: `jobs/${id}` }, broken)).status).toBe(401);
    expect((await fetch(`${url}/api/session`, { headers: broken })).status).toBe(401);
    const left = await fetch(`${url}/api/session`, { method: 'DELETE', headers: cookie });
    expect(left.headers.get('set-cookie')).toMatch(/^relora-token=; .*Max-Age=0$/);
    const behindProxy = await fetch(`${url}/api/session`, {
      method: 'POST',
      headers: { ...json, 'x-forwarded-proto': 'https' },
      body: '{"token":"reader"}',
    });
    expect(behindProxy.headers.get('set-cookie')).toContain('; Secure');
  });

  it('ends the events of a caller whose token is revoked', async () => {
    const revoking = new AbortController();
    const authenticate: Authenticate = async () => ({
      name: 'x',
      tenant: 'default',
      role: 'viewer',
      revoked: revoking.signal,
    });
    const api = await openApi({}, { authenticate });
    const url = await serveWeb({ ...api, authenticate });
    const { id } = await submit(api.parts);
    const reading = eventsOf(`${url}/api/jobs/${id}/events`).catch(() => 'ended');
    await eventsOf(`${url}/api/jobs/${id}/events`, {}, 1);
    revoking.abort(new ServiceError('NOT_AUTHENTICATED', { cause: 'its token was revoked' }));
    await reading;
  });
});
