import { createServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { ReloraClient } from '@relora/sdk';
import { Status, type CallContext } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { brokenServer, refusal, sequencesOf, step, unavailable } from './brokenServer.js';

test('a repeated call carries the same request id', async () => {
  const ids: string[] = [];
  const reported: string[] = [];
  const client = await brokenServer(
    {
      async createJob({ requestId }) {
        ids.push(requestId);
        if (ids.length < 3) throw unavailable();
        return { job: { name: 'jobs/job-1' } };
      },
    },
    { logger: { debug: () => {}, warn: (fields) => void reported.push((fields as { code: string }).code) } },
  );
  expect((await client.createJob({})).name).toBe('jobs/job-1');
  expect(ids).toHaveLength(3);
  expect(new Set(ids).size).toBe(1);
  expect(ids[0]).toMatch(/^[0-9a-f-]{36}$/);
  expect(reported).toEqual(['UNAVAILABLE', 'UNAVAILABLE']);
});

test('a full queue is asked again only if the server says when', async () => {
  let calls = 0;
  const client = await brokenServer({
    async createJob(_, context) {
      calls++;
      throw refusal(context, Status.RESOURCE_EXHAUSTED, 'QUEUE_FULL', calls === 1 ? 1 : undefined);
    },
  });
  await expect(client.createJob({})).rejects.toMatchObject({ reason: 'QUEUE_FULL' });
  expect(calls).toBe(2);
});

test('a server that stays away is given up after the attempts', async () => {
  let calls = 0;
  const client = await brokenServer(
    {
      async getJob() {
        calls++;
        throw unavailable();
      },
    },
    { retries: { attemptsMax: 3 } },
  );
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  expect(calls).toBe(3);
});

test('the deadline ends a call here and is sent to the server', async () => {
  const server = createServer();
  const timeouts: (string | string[] | undefined)[] = [];
  server.on('stream', (_, headers) => void timeouts.push(headers['grpc-timeout']));
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const client = new ReloraClient({ address: `127.0.0.1:${port}`, deadlineMs: 200 });
  onTestFinished(() => {
    client.close();
    server.close();
  });
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  expect(timeouts).toEqual([expect.stringMatching(/^\d{1,3}m$/)]);
});

test('calls have a patience of 60 s unless the caller says otherwise', async () => {
  const timeouts: unknown[] = [];
  const server = createServer().on('stream', (stream, headers) => {
    timeouts.push(headers['grpc-timeout']);
    const grpcStatus = { 'content-type': 'application/grpc', 'grpc-status': Status.NOT_FOUND };
    stream.respond({ ':status': 200, ...grpcStatus }, { endStream: true });
  });
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const client = new ReloraClient({ address: `127.0.0.1:${port}` });
  onTestFinished(() => {
    client.close();
    server.close();
  });
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  await expect(client.getJob('jobs/job-1', { deadlineMs: 9000 })).rejects.toMatchObject({
    code: 'NOT_FOUND',
  });
  for (const deadlineMs of [1e12, Infinity])
    await expect(client.getJob('jobs/job-1', { deadlineMs })).rejects.toMatchObject({ code: 'NOT_FOUND' });
  // As long as a timer of a server in Node can be; none for Infinity.
  expect(timeouts.slice(2)).toEqual(['2147483S', undefined]);
  const notFound = { code: 'NOT_FOUND' };
  const patient = timeouts.length;
  await expect(client.evaluate('jobs/job-1')).rejects.toMatchObject(notFound);
  await expect(client.pauseJob('jobs/job-1')).rejects.toMatchObject(notFound);
  await expect(client.pauseJob('jobs/job-1', { deadlineMs: 9000 })).rejects.toMatchObject(notFound);
  const millis = timeouts.slice(patient).map((text) => Number(/^(\d+)m$/.exec(text as string)?.[1]));
  for (const [index, most] of [3_600_000, 300_000, 9000].entries()) {
    expect(millis[index]).toBeLessThanOrEqual(most);
    expect(millis[index]).toBeGreaterThan(most === 9000 ? 0 : most - 30_000);
  }
  // The remaining time when the call was sent, on a busy machine.
  const [usual, asked] = timeouts.map((text) => Number(/^(\d+)m$/.exec(text as string)?.[1]));
  expect(usual).toBeGreaterThan(30_000);
  expect(usual).toBeLessThanOrEqual(60_000);
  expect(asked).toBeLessThanOrEqual(9000);
});

test.each([2 ** 31, 1e12, Infinity])('a deadline of %d ms is no deadline of none', async (deadlineMs) => {
  const client = await brokenServer({
    // Answers after timers that would end at once have ended.
    async getJob() {
      await new Promise((resolve) => setTimeout(resolve, 5));
      return { job: { name: 'jobs/job-1' } };
    },
    async *watchJob() {
      await new Promise((resolve) => setTimeout(resolve, 5));
      yield step(1, { final: true });
    },
  });
  expect((await client.getJob('jobs/job-1', { deadlineMs })).name).toBe('jobs/job-1');
  const watching = client.watch('jobs/job-1', { deadlineMs, silenceMs: deadlineMs });
  expect(await sequencesOf(watching)).toEqual([1]);
});

test('a token that never comes outlasts neither the deadline nor an abort', async () => {
  const client = await brokenServer({}, { token: () => new Promise<string>(() => {}) });
  await expect(client.getJob('jobs/job-1', { deadlineMs: 20 })).rejects.toMatchObject({
    code: 'DEADLINE_EXCEEDED',
  });
  const abort = new AbortController();
  const { signal } = abort;
  const calls = [
    client.getJob('jobs/job-1', { signal }),
    sequencesOf(client.watch('jobs/job-1', { signal })),
  ];
  abort.abort();
  const aborted = { status: 'rejected', reason: { code: 'CANCELLED' } };
  expect(await Promise.allSettled(calls)).toMatchObject([aborted, aborted]);
});

test('a server that stays away is given up by a call with a long deadline as by others', async () => {
  // Longer than the usual minute, and shorter than the deadlines of both calls.
  const retryDelayMs = 100_000;
  const away = async (_: unknown, context: CallContext) => {
    throw refusal(context, Status.UNAVAILABLE, 'SERVER_STOPPING', retryDelayMs);
  };
  const client = await brokenServer({ evaluateModel: away, pauseJob: away });
  const stopping = { reason: 'SERVER_STOPPING', retryDelayMs };
  await expect(client.evaluate('jobs/job-1')).rejects.toMatchObject(stopping);
  await expect(client.pauseJob('jobs/job-1')).rejects.toMatchObject(stopping);
});

test('a wait that would pass the deadline is not begun', async () => {
  const client = await brokenServer(
    {
      async getJob(_, context) {
        throw refusal(context, Status.UNAVAILABLE, 'SERVER_STOPPING', 900_000);
      },
    },
    { deadlineMs: 500_000 },
  );
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({
    reason: 'SERVER_STOPPING',
    retryDelayMs: 900_000,
  });
});

test('a closed client answers at once', async () => {
  const client = new ReloraClient({ address: '127.0.0.1:1' });
  client.close();
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({
    code: 'CANCELLED',
    message: 'The client was closed',
  });
});

test.each(['one after another', 'at once'])(
  'many calls under one signal, %s, are no leak to Node',
  async (way) => {
    const client = await brokenServer({ getJob: async () => ({ job: { name: 'jobs/job-1' } }) });
    const { signal } = new AbortController();
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => void warnings.push(warning);
    process.on('warning', onWarning);
    onTestFinished(() => void process.off('warning', onWarning));
    const calling: Promise<unknown>[] = [];
    for (let call = 0; call < 30; call++) {
      calling.push(client.getJob('jobs/job-1', { signal }));
      if (way === 'one after another') await calling.at(-1);
    }
    await Promise.all(calling);
    await new Promise(setImmediate);
    expect(warnings).toEqual([]);
  },
);

test('a deletion whose first answer was lost is done when the repeated call finds nothing', async () => {
  let calls = 0;
  const client = await brokenServer({
    async deleteArtifact({ name }, context) {
      if (name.endsWith('never') || ++calls === 2)
        throw refusal(context, Status.NOT_FOUND, 'ARTIFACT_NOT_FOUND');
      throw unavailable();
    },
  });
  await client.deleteArtifact('jobs/job-1/artifacts/model');
  expect(calls).toBe(2);
  await expect(client.deleteArtifact('jobs/job-1/artifacts/never')).rejects.toMatchObject({
    reason: 'ARTIFACT_NOT_FOUND',
  });
});

test('an empty request id is no request id', async () => {
  const ids: string[] = [];
  const client = await brokenServer({
    async pauseJob({ requestId }) {
      ids.push(requestId);
      return { job: { name: 'jobs/job-1' } };
    },
  });
  await client.pauseJob('jobs/job-1', { requestId: undefined });
  await client.pauseJob('jobs/job-1', { requestId: '' });
  for (const id of ids) expect(id).toMatch(/^[0-9a-f-]{36}$/);
});

test('a call takes metadata and a deadline of its own', async () => {
  const received: unknown[] = [];
  const client = await brokenServer({
    async getJob({ name }, { metadata, signal }) {
      received.push(metadata.get('x-team'));
      if (name === 'jobs/slow') await new Promise((resolve) => signal.addEventListener('abort', resolve));
      return { job: { name } };
    },
  });
  await client.getJob('jobs/job-1', { metadata: { 'x-team': 'docs' } });
  expect(received).toEqual(['docs']);
  await expect(client.getJob('jobs/slow', { deadlineMs: 50 })).rejects.toMatchObject({
    code: 'DEADLINE_EXCEEDED',
    message: 'No answer within 50 ms',
  });
});

test('a call is repeated until its deadline, with pauses that grow and never grow equal', async () => {
  let calls = 0;
  const pauses: number[] = [];
  const client = await brokenServer(
    {
      async getJob() {
        calls++;
        throw unavailable();
      },
    },
    {
      deadlineMs: 6000,
      retries: { initialDelayMs: 20, maxDelayMs: 6000 },
      logger: {
        debug: () => {},
        warn: (fields) => void pauses.push((fields as { delayMs: number }).delayMs),
      },
    },
  );
  // On a busy machine the deadline may expire during a call; the error then contains the earlier failure.
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({
    code: expect.stringMatching(/^(UNAVAILABLE|DEADLINE_EXCEEDED)$/) as string,
    message: expect.stringMatching(/on purpose/) as string,
  });
  expect(pauses.length).toBeGreaterThan(3);
  expect([0, 1]).toContain(calls - pauses.length);
  for (const [index, pause] of pauses.slice(0, 4).entries()) {
    expect(pause).toBeGreaterThanOrEqual(10 * 2 ** index);
    expect(pause).toBeLessThanOrEqual(20 * 2 ** index);
  }
  expect(new Set(pauses).size).toBe(pauses.length);
});

test('aborting throws the documented class, with the reason as cause', async () => {
  const client = await brokenServer({
    async getJob(_, { signal }) {
      await new Promise((resolve) => signal.addEventListener('abort', resolve));
      return {};
    },
  });
  const abort = new AbortController();
  const calling = client.getJob('jobs/job-1', { signal: abort.signal });
  const reason = new Error('enough');
  abort.abort(reason);
  await expect(calling).rejects.toMatchObject({ name: 'ReloraError', code: 'CANCELLED', cause: reason });
});

test.each([
  [{ stepCount: 5, adapter: { rnk: 4 } }, 'spec.adapter.rnk', 'there is no such field'],
  [{ step_count: 5 }, 'spec.step_count', 'there is no such field'],
  [{ kind: 'relora' }, 'spec.kind', '"relora" is no value of this field'],
  [{ stepCount: '5' }, 'spec.stepCount', '"5" is no value of this field'],
  [{ stepCount: 1.5 }, 'spec.stepCount', '1.5 is no value of this field'],
  [{ learningRate: { peak: NaN } }, 'spec.learningRate.peak', 'NaN is no value of this field'],
  [{ adapter: { targetModules: ['q'] } }, 'spec.adapter.targetModules.0', '"q" is no value of this field'],
])('plain JavaScript cannot send %j', async (spec, field, description) => {
  const client = await brokenServer({});
  const refused = { code: 'INVALID_ARGUMENT', fields: [{ field, description }] };
  for (const call of [
    () => client.createJob(spec as object),
    () => client.estimateJob(spec as object),
    () => client.validateJob(spec as object),
    () => client.forkJob('jobs/job-1', spec as object),
  ])
    await expect(call()).rejects.toMatchObject(refused);
});

test('plain JavaScript cannot misspell an option or lose a label either', async () => {
  const client = await brokenServer({});
  const misspelt = { dispalyName: 'tales' } as object;
  await expect(client.createJob({}, misspelt)).rejects.toMatchObject({ fields: [{ field: 'dispalyName' }] });
  const labels = JSON.parse('{ "__proto__": "x" }') as Record<string, string>;
  await expect(client.createJob({}, { labels })).rejects.toMatchObject({
    fields: [{ field: 'labels.__proto__' }],
  });
  const uploads: [options: object, field: string][] = [
    [{ spec: { txtField: 'body' } }, 'spec.txtField'],
    [{ heldOutShare: 0.1 }, 'heldOutShare'],
    [{ labels }, 'labels.__proto__'],
    [{ files: [{ content: 'x', splt: 'TRAIN' }] }, 'files.0.splt'],
    [{ files: [{ serverPath: '/x', splt: 'TRAIN' }] }, 'files.0.splt'],
  ];
  for (const [options, field] of uploads)
    await expect(client.uploadDataset({ files: [{ content: 'x' }], ...options })).rejects.toMatchObject({
      fields: [{ field }],
    });
  for (const [options, field] of [
    [{ labels }, 'labels.__proto__'],
    [{ dispalyName: 'tales' }, 'dispalyName'],
  ] as [object, string][])
    await expect(client.uploadWeights({ from: [], ...options })).rejects.toMatchObject({
      fields: [{ field }],
    });
});
