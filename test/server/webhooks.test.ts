import { Status } from 'nice-grpc';
import { WebhookDeliveryState } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { post } from '../../server/dist/webhooks/post.js';
import { Reachable, type Resolve } from '../../server/dist/webhooks/reachable.js';
import { signedHeaders } from '../../server/dist/webhooks/webhook.js';
import { jobSpec, openApi, refusalOf, type Api } from './apiServer.js';
import { patienceMs } from '../patience.mjs';
import { hasOpenssl, makeAuthority } from './certificateFiles.js';
import { allEvents, readyDataset } from './parts.js';
import { isSigned, startReceiver, type Received } from './webhookReceiver.js';

const here = {
  RELORA_WEBHOOK_NETWORKS: '127.0.0.0/8',
  RELORA_WEBHOOK_RETRY_SECONDS: '0.01',
};

async function openWithSender(settings: Record<string, string> = {}): Promise<Api> {
  const api = await openApi({ ...here, ...settings });
  await readyDataset(api.parts);
  await api.parts.supervisor.start();
  api.webhookSender.start();
  return api;
}

const sequenceOf = ({ message }: Received): number => Number(message.data.sequence);
const numbers = (from: number, through: number): number[] =>
  Array.from({ length: through - from + 1 }, (_, index) => from + index);

/** Numbers of the events other than steps: what a webhook without a list of kinds receives. */
async function noticeNumbers(api: Api, job: string): Promise<number[]> {
  const events = await allEvents(api.parts, job.replace('jobs/', ''));
  return events.filter(({ body }) => body.kind !== 'step').map(({ sequence }) => sequence);
}

describe('a webhook', () => {
  it('gets each event of a job that is no step, signed, once and in order', async () => {
    const api = await openWithSender();
    const receiver = await startReceiver();
    const { secret, webhook } = await api.webhooks.createWebhook({ webhookId: 'hook', url: receiver.url });
    const { job } = await api.training.createJob({ spec: jobSpec(), labels: { team: 'tales' } });
    await receiver.until((all) => all.some(({ message }) => isFinal(message.data)));
    const { received } = receiver;
    expect(received.map(sequenceOf)).toEqual(await noticeNumbers(api, job!.name));
    expect(received.every((message) => isSigned(message, secret))).toBe(true);
    expect(received.some((message) => isSigned({ ...message, body: `${message.body} ` }, secret))).toBe(
      false,
    );
    expect(new Set(received.map(({ id }) => id)).size).toBe(received.length);
    expect(received.every(({ id }) => !id.includes('.'))).toBe(true);
    expect(Math.abs(received[0]!.timestamp - Date.now() / 1000)).toBeLessThan(600);
    expect(received[0]!.message).toMatchObject({
      type: 'job.state',
      data: {
        job: job!.name,
        labels: { team: 'tales' },
        sequence: 1,
        event: { state: { to: 'JOB_STATE_QUEUED' } },
      },
    });
    expect(webhook!.eventKinds).not.toContain('step');
    // The receiver has the last message before the server knows that it was delivered.
    const listed = async () => (await api.webhooks.listWebhooks({})).webhooks;
    await expect.poll(listed).toMatchObject([{ pendingCount: 0, deadCount: 0, lastFailure: '' }]);
  });

  it('gets only the kinds and the jobs that it names, and of those every number', async () => {
    const api = await openWithSender();
    const [all, few] = [await startReceiver(), await startReceiver()];
    const kinds = [
      'state',
      'step',
      'evaluation',
      'restart',
      'checkpoint',
      'artifact',
      'sample',
      'warning',
      'plan',
    ];
    await api.webhooks.createWebhook({ url: all.url, eventKinds: kinds, labels: { team: 'tales' } });
    await api.webhooks.createWebhook({ url: few.url, eventKinds: ['checkpoint'] });
    const { job: other } = await api.training.createJob({ spec: jobSpec(), labels: { team: 'poems' } });
    const { job } = await api.training.createJob({ spec: jobSpec(), labels: { team: 'tales' } });
    await all.until((received) => received.some(({ message }) => isFinal(message.data)));
    const events = await allEvents(api.parts, job!.name.replace('jobs/', ''));
    expect(all.received.map(sequenceOf)).toEqual(numbers(1, events.length));
    await few.until((received) => received.length === 8);
    expect(new Set(few.received.map(({ message }) => message.type))).toEqual(new Set(['job.checkpoint']));
    expect(new Set(few.received.map(({ message }) => message.data.job))).toEqual(
      new Set([other!.name, job!.name]),
    );
  });

  it('gets nothing of what was before it, and of a job under way what comes', async () => {
    const api = await openWithSender();
    const { job: ended } = await api.training.createJob({ spec: jobSpec() });
    for await (const { event } of api.training.watchJob({ name: ended!.name })) if (event!.final) break;
    const { job: waiting } = await api.training.createJob({ spec: jobSpec('pauseAt:7') });
    const paused = (await api.training.pauseJob({ name: waiting!.name })).job!;
    const receiver = await startReceiver();
    await api.webhooks.createWebhook({ url: receiver.url });
    await api.training.cancelJob({ name: waiting!.name });
    await receiver.until((all) => all.some(({ message }) => isFinal(message.data)));
    expect(new Set(receiver.received.map(({ message }) => message.data.job))).toEqual(
      new Set([waiting!.name]),
    );
    expect(Math.min(...receiver.received.map(sequenceOf))).toBeGreaterThan(0);
    expect(Math.min(...receiver.received.map(sequenceOf))).toBeGreaterThanOrEqual(
      Number(paused.lastSequence),
    );
  });

  it('is sent a message again with the same id until it takes it, and another one meanwhile', async () => {
    const api = await openWithSender();
    const receiver = await startReceiver();
    const refusals = new Map<string, number>();
    receiver.answer = ({ id }) => {
      const count = refusals.get(id) ?? 0;
      refusals.set(id, count + 1);
      return count < 2 ? 503 : 200;
    };
    await api.webhooks.createWebhook({ url: receiver.url, eventKinds: ['state'] });
    await api.training.createJob({ spec: jobSpec() });
    await receiver.until((all) => all.length === 12);
    expect(new Set(receiver.received.map(({ id }) => id)).size).toBe(4);
    // The same message in each attempt.
    expect(new Set(receiver.received.map(({ id, body }) => `${id} ${body}`)).size).toBe(4);
  });

  it('has dead letters, which are listed and sent again', async () => {
    const api = await openWithSender({ RELORA_WEBHOOK_ATTEMPTS_MAX: '2' });
    const receiver = await startReceiver();
    receiver.answer = () => 500;
    const { webhook } = await api.webhooks.createWebhook({ url: receiver.url, eventKinds: ['state'] });
    const { name } = webhook!;
    await api.training.createJob({ spec: jobSpec() });
    await receiver.until((all) => all.length === 8);
    const state = WebhookDeliveryState.DEAD;
    const dead = async () =>
      (await api.webhooks.listWebhookDeliveries({ parent: name, state, pageSize: 3 })).deliveries;
    // The receiver answered before the server recorded it.
    await expect.poll(async () => (await api.webhooks.listWebhooks({})).webhooks[0]!.deadCount).toBe(4);
    const page = await api.webhooks.listWebhookDeliveries({ parent: name, state, pageSize: 3 });
    const rest = await api.webhooks.listWebhookDeliveries({
      parent: name,
      state,
      pageSize: 3,
      pageToken: page.nextPageToken,
    });
    expect([page.deliveries.length, rest.deliveries.length, rest.nextPageToken]).toEqual([3, 1, '']);
    expect(page.deliveries[0]).toMatchObject({
      eventKind: 'state',
      attemptCount: 2,
      failure: 'The receiver answered 500',
      nextTime: undefined,
    });
    receiver.answer = () => 200;
    const first = page.deliveries[0]!.messageId;
    const one = await api.webhooks.resendWebhookDeliveries({ name, messageIds: [first] });
    expect(one.deliveryCount).toBe(1);
    await receiver.until((all) => all.length === 9);
    expect(receiver.received[8]!.id).toBe(first);
    expect((await api.webhooks.resendWebhookDeliveries({ name })).deliveryCount).toBe(3);
    await receiver.until((all) => all.length === 12);
    await expect.poll(dead).toEqual([]);
    await expect.poll(async () => (await api.webhooks.listWebhooks({})).webhooks[0]!.pendingCount).toBe(0);
  });

  it('keeps what waits within its limits, and loses nothing by that', async () => {
    const api = await openWithSender({
      RELORA_WEBHOOK_PENDING_MAX: '1',
      RELORA_WEBHOOK_ATTEMPTS_MAX: '100',
    });
    const receiver = await startReceiver();
    receiver.answer = () => 500;
    await api.webhooks.createWebhook({ url: receiver.url, eventKinds: ['state', 'step'] });
    const { job } = await api.training.createJob({ spec: jobSpec() });
    for await (const { event } of api.training.watchJob({ name: job!.name })) if (event!.final) break;
    expect((await api.webhooks.listWebhooks({})).webhooks[0]!.pendingCount).toBeLessThanOrEqual(256);
    receiver.answer = () => 200;
    const events = await allEvents(api.parts, job!.name.replace('jobs/', ''));
    const wanted = events.filter(({ body }) => body.kind === 'step' || body.kind === 'state');
    await receiver.until((all) => new Set(all.map(sequenceOf)).size === wanted.length);
  });

  it('ends with what it had still to send when it is deleted', async () => {
    const api = await openWithSender();
    const receiver = await startReceiver();
    receiver.answer = () => 500;
    const { webhook } = await api.webhooks.createWebhook({ url: receiver.url });
    await api.training.createJob({ spec: jobSpec() });
    await receiver.until((all) => all.length >= 2);
    await api.webhooks.deleteWebhook({ name: webhook!.name });
    expect(await api.parts.db.selectFrom('webhook_deliveries').select('id').execute()).toEqual([]);
    expect(await api.parts.db.selectFrom('journal_readers').select('id').execute()).toEqual([]);
    const gone = await refusalOf((options) => api.webhooks.testWebhook({ name: webhook!.name }, options));
    expect(gone.info.reason).toBe('WEBHOOK_NOT_FOUND');
  });

  it('is tested at once, with what came of it', async () => {
    const api = await openWithSender({ RELORA_WEBHOOK_SECONDS: '0.5' });
    const receiver = await startReceiver();
    const { webhook, secret } = await api.webhooks.createWebhook({ url: receiver.url });
    const { name } = webhook!;
    expect(await api.webhooks.testWebhook({ name })).toMatchObject({ statusCode: 200, failure: '' });
    expect(receiver.received[0]!.message.type).toBe('relora.test');
    expect(isSigned(receiver.received[0]!, secret)).toBe(true);
    receiver.answer = () => 302;
    expect(await api.webhooks.testWebhook({ name })).toMatchObject({
      statusCode: 302,
      failure: 'The receiver answered 302; redirects are not followed',
    });
    receiver.answer = () => undefined;
    expect(await api.webhooks.testWebhook({ name })).toMatchObject({
      statusCode: 0,
      failure: 'No answer within 0.5 s',
    });
    expect(receiver.received.map(({ path }) => path)).toEqual(['/hook', '/hook', '/hook']);
  });

  it.skipIf(!hasOpenssl)('is reached over TLS with a certificate that is checked', async () => {
    const authority = makeAuthority();
    const { certificate: cert, key } = authority.sign('receiver', '/CN=receiver');
    const receiver = await startReceiver({ cert, key });
    for (const [ca, expected] of [
      ['', { statusCode: 0 }],
      [authority.caFile, { statusCode: 200, failure: '' }],
    ] as const) {
      const api = await openApi({ ...here, RELORA_WEBHOOK_CA: ca });
      const { webhook } = await api.webhooks.createWebhook({ url: receiver.url });
      expect(await api.webhooks.testWebhook({ name: webhook!.name })).toMatchObject(expected);
    }
    expect(receiver.received.length).toBe(1);
  });
});

function isFinal(data: Record<string, unknown>): boolean {
  return (data.event as { final: boolean }).final;
}

describe('the key of a webhook', () => {
  it('is shown once, and is in no list, log or audit entry afterwards', async () => {
    const api = await openApi(here);
    const { secret, webhook } = await api.webhooks.createWebhook({ url: 'https://hooks.example.com/' });
    expect(secret).toMatch(/^whsec_.{40,}$/);
    const { entries } = await api.server.listAuditEntries({});
    const shown = JSON.stringify([
      await api.webhooks.listWebhooks({}),
      await api.webhooks.listWebhookDeliveries({ parent: webhook!.name }),
      entries,
    ]);
    expect(entries).toMatchObject([{ method: 'WebhookService/CreateWebhook', resource: webhook!.name }]);
    expect(shown).not.toContain(secret.slice(6));
    const wrong = `whsec_${'!'.repeat(40)}`;
    const refused = await refusalOf((options) =>
      api.webhooks.createWebhook({ url: 'https://hooks.example.com/', secret: wrong }, options),
    );
    expect(refused.fields).toEqual(['secret']);
    expect(refused.message).not.toContain('!!');
  });

  it('makes a repeated creation the same webhook, and another one a conflict', async () => {
    const api = await openApi(here);
    const secret = `whsec_${Buffer.alloc(32, 7).toString('base64')}`;
    const wanted = { webhookId: 'hook', url: 'https://hooks.example.com/', secret };
    const first = await api.webhooks.createWebhook(wanted);
    expect(await api.webhooks.createWebhook(wanted)).toEqual(first);
    const other = await refusalOf((options) =>
      api.webhooks.createWebhook({ ...wanted, url: 'https://example.com/' }, options),
    );
    expect(other).toMatchObject({ code: Status.ALREADY_EXISTS, info: { reason: 'WEBHOOK_EXISTS' } });
  });

  it('signs as the example of Standard Webhooks', () => {
    // The test vector of its official libraries.
    const secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
    const headers = signedHeaders(
      secret,
      { id: 'msg_p5jXN8AQM9LWM0D4loKWxJek', body: '{"test": 2432232314}' },
      1_614_265_330_000,
    );
    expect(headers['webhook-signature']).toBe('v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=');
  });
});

describe('an address', () => {
  const refusedAddresses = [
    '0.0.0.0',
    '10.0.0.1',
    '100.64.0.1',
    '127.0.0.1',
    '127.255.255.254',
    '169.254.169.254',
    '172.16.0.1',
    '172.31.255.255',
    '192.168.1.1',
    '198.18.0.1',
    '224.0.0.1',
    '255.255.255.255',
    '::',
    '::1',
    '::ffff:127.0.0.1',
    '::ffff:a9fe:a9fe',
    '::ffff:10.0.0.1',
    '::127.0.0.1',
    '64:ff9b::a9fe:a9fe',
    '2002:7f00:1::',
    '2001:0:7f00:1::',
    'fc00::1',
    'fd00:ec2::254',
    'fe80::1',
    'fe80::1%eth0',
    'ff02::1',
  ];
  const taken = ['1.1.1.1', '172.32.0.1', '::ffff:1.1.1.1', '2606:4700::1111'];

  it('is refused unless it is public, however it is written', () => {
    const reachable = new Reachable([]);
    expect(refusedAddresses.filter((address) => reachable.isAllowed(address))).toEqual([]);
    expect(taken.filter((address) => !reachable.isAllowed(address))).toEqual([]);
    const hosts = ['127.1', '2130706433', '0x7f.1', '[::ffff:127.0.0.1]', '017700000001', '169.254.169.254'];
    for (const host of hosts) expect(reachable.problemOf(new URL(`https://${host}/`)), host).toBeDefined();
    for (const url of ['ftp://example.com/', 'http://example.com/', 'https://me:you@example.com/'])
      expect(reachable.problemOf(new URL(url)), url).toBeDefined();
    expect(reachable.problemOf(new URL('https://example.com/'))).toBeUndefined();
  });

  it('of a network that the settings name is reached, and no other', () => {
    const reachable = new Reachable(['10.1.0.0/16', 'fd00::/8', '127.0.0.1']);
    expect(
      ['10.1.2.3', '::ffff:10.1.2.3', 'fd12::1', '127.0.0.1'].filter((each) => !reachable.isAllowed(each)),
    ).toEqual([]);
    expect(['10.2.0.1', '127.0.0.2', 'fe80::1'].filter((each) => reachable.isAllowed(each))).toEqual([]);
    expect(reachable.problemOf(new URL('http://127.0.0.1:8080/'))).toBeUndefined();
    expect(reachable.problemOf(new URL('http://10.1.2.3/'))).toBeDefined();
  });

  it('that a name leads to is checked with each message, and no connection is made to another', async () => {
    const receiver = await startReceiver();
    const options = { timeoutMs: 5000, ca: undefined, signal: new AbortController().signal };
    const lookups: string[][] = [];
    const leadingTo =
      (...answers: string[][]): Resolve =>
      (_name, _options, callback) => {
        const addresses = answers[Math.min(lookups.length, answers.length - 1)]!;
        lookups.push(addresses);
        callback(
          null,
          addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 })),
        );
      };
    const url = new URL(`https://rebind.example.com:${receiver.port}/`);
    // A single allowed address among them does not help.
    for (const addresses of [['127.0.0.1'], ['1.1.1.1', '127.0.0.1'], ['::ffff:7f00:1']]) {
      lookups.length = 0;
      const result = await post(url, {}, '{}', {
        ...options,
        reachable: new Reachable([], leadingTo(addresses)),
      });
      expect(result.failure).toBe(
        'The address is refused: its name leads to an address that the settings do not allow',
      );
      expect(lookups.length).toBe(1);
    }
    // A name that resolves to an allowed address first, and to another one the next time: it is resolved only once.
    lookups.length = 0;
    const rebinding = leadingTo(['127.0.0.1'], ['169.254.169.254']);
    const result = await post(url, {}, '{}', {
      ...options,
      reachable: new Reachable(['127.0.0.1/32'], rebinding),
    });
    expect(lookups).toEqual([['127.0.0.1']]);
    expect(result.failure).toMatch(/^The connection failed: (EPROTO|ERR_SSL|ECONNRESET)/);
    expect(receiver.received).toEqual([]);
  });

  it('is refused when a webhook is made, with its reason', async () => {
    const api = await openApi();
    for (const url of [
      'http://127.0.0.1/',
      'https://127.0.0.1/',
      'https://[::1]/',
      'nonsense',
      'https://10.0.0.1/x',
    ]) {
      const refused = await refusalOf((options) => api.webhooks.createWebhook({ url }, options));
      expect(refused.fields, url).toEqual(['url']);
    }
    const refused = await refusalOf((options) =>
      api.webhooks.createWebhook(
        { webhookId: 'A', url: 'https://example.com/', eventKinds: ['steps'], secret: 'short' },
        options,
      ),
    );
    expect(refused.fields).toEqual(['webhook_id', 'event_kinds[0]', 'secret']);
  });

  it('of another webhook than a tenant may have is refused', async () => {
    const api = await openApi({ RELORA_WEBHOOKS_MAX: '1' });
    await api.webhooks.createWebhook({ url: 'https://example.com/' });
    const refused = await refusalOf((options) =>
      api.webhooks.createWebhook({ url: 'https://example.com/' }, options),
    );
    expect(refused.info.reason).toBe('TOO_MANY_WEBHOOKS');
  });
});

it('a message that would be too long comes without its event', async () => {
  const api = await openWithSender({ RELORA_WEBHOOK_BODY_BYTES_MAX: '1024' });
  const receiver = await startReceiver();
  await api.webhooks.createWebhook({ url: receiver.url });
  await api.training.createJob({
    spec: jobSpec(),
    displayName: 'x'.repeat(60),
    labels: { long: 'y'.repeat(256) },
  });
  await receiver.until((all) => all.length >= 6);
  for (const { body, message } of receiver.received) {
    expect(Buffer.byteLength(body)).toBeLessThanOrEqual(1024);
    expect(message.data.truncated === true || message.data.event !== undefined).toBe(true);
  }
});

it.each([301, 302, 303, 307, 308])('an answer of %i leads a message nowhere else', async (status) => {
  const [receiver, elsewhere] = [await startReceiver(), await startReceiver()];
  receiver.answer = () => status;
  receiver.location = elsewhere.url;
  const reachable = new Reachable(['127.0.0.1/32']);
  const options = { reachable, timeoutMs: patienceMs, ca: undefined, signal: new AbortController().signal };
  expect(await post(new URL(receiver.url), {}, '{}', options)).toEqual({
    statusCode: status,
    failure: `The receiver answered ${status}; redirects are not followed`,
  });
  expect([receiver.received.length, elsewhere.received.length]).toEqual([1, 0]);
});
