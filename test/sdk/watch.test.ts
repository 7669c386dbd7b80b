import { JobState, type ReloraError } from '@relora/sdk';
import { Status } from 'nice-grpc';
import { expect, test } from 'vitest';
import {
  brokenServer,
  heartbeat,
  refusal,
  reset,
  sequencesOf,
  step,
  unavailable,
  untilCancelled,
} from './brokenServer.js';

const job = (state: JobState, lastSequence: number) => async () => ({
  job: { name: 'jobs/job-1', state, lastSequence },
});

test.each([
  ['UNAVAILABLE', unavailable],
  ['a stream that ends without trailers', reset],
])('continues after the last event when the stream breaks: %s', async (_, fault) => {
  const opened: number[] = [];
  const client = await brokenServer({
    async *watchJob({ afterSequence }) {
      opened.push(afterSequence);
      if (opened.length === 1) throw fault();
      yield step(afterSequence + 1, { final: afterSequence === 2 });
      throw fault();
    },
  });
  expect(await sequencesOf(client.watch('jobs/job-1'))).toEqual([1, 2, 3]);
  expect(opened).toEqual([0, 0, 1, 2]);
});

test('leaves out what it has seen, heartbeats, and kinds of events that it does not know', async () => {
  const client = await brokenServer({
    async *watchJob() {
      yield step(1);
      yield heartbeat(1);
      yield step(1);
      yield { event: { sequence: 2 } };
      yield step(2);
      yield step(3, { final: true });
    },
  });
  expect(await sequencesOf(client.watch('jobs/job-1'))).toEqual([1, 3]);
});

test('an event that was left out is an error, not a silent loss', async () => {
  const client = await brokenServer({
    async *watchJob() {
      yield step(1);
      yield step(3);
    },
  });
  await expect(sequencesOf(client.watch('jobs/job-1'))).rejects.toMatchObject({
    code: 'DATA_LOSS',
    reason: 'SEQUENCE_GAP',
  });
});

test('a silent server is asked again', async () => {
  let opened = 0;
  const client = await brokenServer({
    async *watchJob(_, context) {
      if (++opened === 1) await untilCancelled(context);
      else yield step(1, { final: true });
    },
  });
  expect(await sequencesOf(client.watch('jobs/job-1', { silenceMs: 20 }))).toEqual([1]);
  expect(opened).toBe(2);
});

test('ends when the final event was read before', async () => {
  const client = await brokenServer({
    // As the server does when nothing is left.
    async *watchJob() {
      return;
    },
    getJob: job(JobState.SUCCEEDED, 9),
  });
  expect(await sequencesOf(client.watch('jobs/job-1', { afterSequence: 9 }))).toEqual([]);
});

test('asks again when the server ends a stream while the job runs', async () => {
  let opened = 0;
  const client = await brokenServer({
    async *watchJob() {
      if (++opened === 3) yield step(1, { final: true });
    },
    getJob: job(JobState.RUNNING, 0),
  });
  expect(await sequencesOf(client.watch('jobs/job-1'))).toEqual([1]);
});

test('the time that a reader takes for an event is no silence of the server', async () => {
  let opened = 0;
  const client = await brokenServer({
    async *watchJob({ afterSequence }) {
      if (++opened === 2) throw unavailable();
      yield step(afterSequence + 1, { final: afterSequence === 1 });
      throw unavailable();
    },
  });
  const read: number[] = [];
  for await (const { sequence } of client.watch('jobs/job-1', { deadlineMs: 3000, silenceMs: 3000 })) {
    read.push(sequence);
    const end = performance.now() + 3200;
    await expect.poll(() => performance.now() > end, { interval: 10 }).toBe(true);
  }
  expect(read).toEqual([1, 2]);
});

test('gives up on a server that stays away', async () => {
  const client = await brokenServer({
    async *watchJob() {
      throw unavailable();
    },
  });
  const watching = sequencesOf(client.watch('jobs/job-1', { deadlineMs: 20 }));
  await expect(watching).rejects.toMatchObject({
    code: 'UNAVAILABLE',
    method: '/relora.v1.TrainingService/WatchJob',
  });
});

test('a refusal is thrown at once', async () => {
  let opened = 0;
  const client = await brokenServer({
    async *watchJob(_, context) {
      opened++;
      throw refusal(context, Status.NOT_FOUND, 'JOB_NOT_FOUND');
    },
  });
  await expect(sequencesOf(client.watch('jobs/job-1'))).rejects.toMatchObject({ reason: 'JOB_NOT_FOUND' });
  expect(opened).toBe(1);
});

test.each(['close', 'abort', 'break'] as const)('%s ends the stream on the server as well', async (way) => {
  let ended = () => {};
  const hasEnded = new Promise<void>((resolve) => (ended = resolve));
  const client = await brokenServer({
    async *watchJob(_, context) {
      yield step(1);
      await untilCancelled(context);
      ended();
    },
  });
  const abort = new AbortController();
  const watching = (async () => {
    for await (const _ of client.watch('jobs/job-1', { signal: abort.signal })) {
      if (way === 'break') break;
      if (way === 'abort') abort.abort(new Error('enough'));
      if (way === 'close') client.close();
    }
  })();
  if (way === 'break') await watching;
  if (way === 'abort')
    await expect(watching).rejects.toMatchObject({
      name: 'ReloraError',
      code: 'CANCELLED',
      cause: new Error('enough'),
    });
  if (way === 'close') await expect(watching).rejects.toMatchObject({ code: 'CANCELLED' });
  await hasEnded;
});

test('waiting for a job can end with a pause, but not with one of the past', async () => {
  let state: JobState = JobState.RUNNING;
  const paused = { step: undefined, state: { to: JobState.PAUSED } };
  const client = await brokenServer({
    async *watchJob(_, context) {
      yield step(1, paused);
      yield step(2);
      state = JobState.PAUSED;
      yield step(3, paused);
      await untilCancelled(context);
    },
    getJob: async () => ({ job: { name: 'jobs/job-1', state, lastSequence: 3 } }),
  });
  const seen: number[] = [];
  const onEvent = ({ sequence }: { sequence: number }) => seen.push(sequence);
  expect(await client.waitForJob('jobs/job-1', { untilPaused: true, onEvent })).toMatchObject({ state });
  expect(seen.at(-1)).toBeGreaterThanOrEqual(1);
  expect(await client.waitForJob('jobs/job-1', { untilPaused: true })).toMatchObject({ state });
});

test('waiting for a job that failed throws what it failed of', async () => {
  const failure = { reason: 'LOSS_NOT_FINITE', message: 'step 7' };
  const client = await brokenServer({
    getJob: async () => ({ job: { name: 'jobs/job-1', state: JobState.FAILED, lastSequence: 4, failure } }),
  });
  const error: ReloraError = await client.waitForJob('jobs/job-1').then(Promise.reject, (error) => error);
  expect(error).toMatchObject({ name: 'JobFailedError', reason: 'LOSS_NOT_FINITE' });
  expect(error.message).toBe('jobs/job-1 failed: step 7');
});

test('who waits without listening asks for a step each minute at most', async () => {
  const asked: number[] = [];
  const client = await brokenServer({
    getJob: async () => ({
      job: {
        name: 'jobs/job-1',
        state: asked.length % 2 === 0 ? 'JOB_STATE_RUNNING' : 'JOB_STATE_SUCCEEDED',
      },
    }),
    watchJob: async function* ({ stepIntervalMs }) {
      asked.push(stepIntervalMs);
      yield { event: { sequence: 1, final: true, state: {} } };
    },
  });
  await client.waitForJob('jobs/job-1');
  asked.push(NaN); // running again
  await client.waitForJob('jobs/job-1', { onEvent: () => {} });
  expect(asked).toEqual([60_000, NaN, 0]);
});

test('where the store is another one by then it says so, and begins again', async () => {
  const asked: [number, string][] = [];
  const client = await brokenServer({
    async *watchJob({ afterSequence, storeId }, context) {
      asked.push([afterSequence, storeId]);
      if (storeId === 'old') throw refusal(context, Status.FAILED_PRECONDITION, 'STORE_CHANGED');
      yield { ...step(1), storeId: asked.length === 1 ? 'old' : 'new' };
      if (asked.length === 1) throw unavailable();
      yield step(2, { final: true });
    },
  });
  const events = [];
  for await (const { kind, sequence, storeId } of client.watch('jobs/job-1'))
    events.push([kind, sequence, storeId]);
  expect(events).toEqual([
    ['step', 1, 'old'],
    ['storeChanged', 0, ''],
    ['step', 1, 'new'],
    ['step', 2, 'new'],
  ]);
  expect(asked).toEqual([
    [0, ''],
    [1, 'old'],
    [0, ''],
  ]);
});
