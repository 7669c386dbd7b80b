import type { DeepPartial, JobEvent, WatchJobsRequest } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { openApi, refusalOf, type Api } from './apiServer.js';
import { claim, execution, openParts, readyDataset, stepEvent, submit } from './parts.js';
import { freshDatabase, hasPostgres } from './postgres.js';

interface Seen {
  events: Map<string, JobEvent[]>;
  cursors: string[];
}

/** Reads until the condition holds or the stream ends; the numbers of each job must be consecutive. */
async function read(
  api: Api,
  request: DeepPartial<WatchJobsRequest>,
  isEnough: (seen: Seen) => boolean = () => false,
  first: Seen['events'] = new Map(),
): Promise<Seen> {
  const seen: Seen = { events: new Map([...first].map(([job, events]) => [job, [...events]])), cursors: [] };
  for await (const { job, event, cursor } of api.training.watchJobs(request)) {
    if (cursor !== '') seen.cursors.push(cursor);
    if (event !== undefined) {
      const events = seen.events.get(job) ?? [];
      if (events.length > 0) expect(event.firstSequence).toBe(events.at(-1)!.sequence + 1);
      seen.events.set(job, [...events, event]);
    }
    if (isEnough(seen)) break;
  }
  return seen;
}

const sequences = (seen: Seen | Seen['events'], job: string): number[] =>
  ((seen instanceof Map ? seen : seen.events).get(`jobs/${job}`) ?? []).map(({ sequence }) => sequence);

async function labeled(api: Api, jobId: string, sweep = 'one'): Promise<void> {
  await submit(api.parts, { jobId, labels: { sweep } });
}

/** Runs the next job to its end, with this many steps. */
async function run(api: Api, stepCount: number): Promise<string> {
  const { id, attempt } = await claim(api.parts);
  const key = { jobId: id, attempt };
  await api.parts.attempts.started(key, execution, 0);
  for (let step = 0; step < stepCount; step++) await api.parts.attempts.append(key, [stepEvent(step)]);
  await api.parts.attempts.succeeded(key);
  return id;
}

async function opened(settings: Record<string, string> = {}): Promise<Api> {
  const api = await openApi(settings);
  await readyDataset(api.parts);
  return api;
}

describe('a watch of many jobs', () => {
  it('has the events of all jobs with the labels, each in order, and of no other; it ends when all have ended', async () => {
    const api = await opened();
    await labeled(api, 'job-one');
    await labeled(api, 'job-two');
    await labeled(api, 'job-other', 'two');
    const watched = read(api, { labels: { sweep: 'one' }, untilAllEnded: true });
    for (const count of [3, 5, 1]) await run(api, count);
    const seen = await watched;
    expect([...seen.events.keys()].sort()).toEqual(['jobs/job-one', 'jobs/job-two']);
    // queued, starting, running, steps, succeeded
    expect(sequences(seen, 'job-one')).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(sequences(seen, 'job-two')).toHaveLength(9);
    expect(seen.events.get('jobs/job-two')!.at(-1)!.final).toBe(true);
  });

  it('takes in jobs that are created or get the label meanwhile', async () => {
    const api = await opened();
    await labeled(api, 'job-one');
    await labeled(api, 'job-late', 'none');
    const watched = read(api, { labels: { sweep: 'one' } }, ({ events }) =>
      ['jobs/job-one', 'jobs/job-new', 'jobs/job-late'].every((job) => events.get(job)?.at(-1)?.final),
    );
    await run(api, 1);
    await labeled(api, 'job-new');
    await api.training.updateJob({ name: 'jobs/job-late', labels: { sweep: 'one' } });
    await run(api, 1);
    await run(api, 1);
    expect(sequences(await watched, 'job-late')[0]).toBe(1);
  });

  it('continues from each of its cursors without a gap, also with jobs that came and ended between', async () => {
    const api = await opened({ RELORA_HEARTBEAT_SECONDS: '0.1' });
    await labeled(api, 'job-one');
    await labeled(api, 'job-two');
    await run(api, 2);
    // Its first cursor comes before any event, another one after the silence.
    const first = await read(api, { labels: { sweep: 'one' } }, ({ cursors }) => cursors.length === 2);
    expect(sequences(first, 'job-one')).toHaveLength(6);
    await labeled(api, 'job-three');
    await run(api, 3);
    await run(api, 4);
    const whole = await read(api, { labels: { sweep: 'one' }, untilAllEnded: true });
    const begin = await read(api, {
      labels: { sweep: 'one' },
      cursor: first.cursors[0]!,
      untilAllEnded: true,
    });
    expect(begin.events).toEqual(whole.events);
    const rest = await read(
      api,
      { labels: { sweep: 'one' }, cursor: first.cursors[1]!, untilAllEnded: true },
      undefined,
      first.events,
    );
    expect(rest.events).toEqual(whole.events);
    expect([...rest.events.keys()]).toHaveLength(3);
  });

  it('continues jobs that ended or lost the label while nobody watched', async () => {
    const api = await opened({ RELORA_HEARTBEAT_SECONDS: '0.1' });
    const { db, attempts } = api.parts;
    await labeled(api, 'job-one');
    await labeled(api, 'job-two');
    // So old that only the cursor leads to them once they have ended.
    await db.updateTable('jobs').set({ create_time_ms: 1 }).execute();
    const keys = [];
    for (let count = 0; count < 2; count++) {
      const { id, attempt } = await claim(api.parts);
      const key = { jobId: id, attempt };
      await attempts.started(key, execution, 0);
      await attempts.append(key, [stepEvent(0)]);
      keys.push(key);
    }
    const request = { labels: { sweep: 'one' }, untilAllEnded: true };
    const first = await read(api, request, ({ cursors }) => cursors.length === 2);
    expect(sequences(first, 'job-one')).toEqual([1, 2, 3, 4]);
    await api.training.updateJob({ name: 'jobs/job-two', removedLabels: ['sweep'] });
    for (const key of keys) {
      await attempts.append(key, [stepEvent(1)]);
      await attempts.succeeded(key);
    }
    const rest = await read(api, { ...request, cursor: first.cursors[1]! }, undefined, first.events);
    expect(sequences(rest, 'job-one')).toEqual([1, 2, 3, 4, 5, 6]);
    expect(rest.events.get('jobs/job-two')!.at(-1)!.final).toBe(true);
  });

  it('leaves out on request what was before, and then misses nothing', async () => {
    const api = await opened();
    await labeled(api, 'job-ended');
    await run(api, 1);
    await labeled(api, 'job-one');
    const begun = await read(api, { skipPast: true }, ({ cursors }) => cursors.length === 1);
    await run(api, 2);
    await labeled(api, 'job-new');
    await run(api, 1);
    const seen = await read(api, { skipPast: true, cursor: begun.cursors[0]!, untilAllEnded: true });
    expect([...seen.events.keys()].sort()).toEqual(['jobs/job-new', 'jobs/job-one']);
    expect(sequences(seen, 'job-one')).toEqual([2, 3, 4, 5, 6]);
  });

  it('sends few steps of each job where that is asked for, and the last one', async () => {
    const api = await opened();
    await labeled(api, 'job-one');
    const watched = (async () => {
      const steps: number[] = [];
      for await (const { event, omittedStepEvents } of api.training.watchJobs({
        stepIntervalMs: 60_000,
        untilAllEnded: true,
      })) {
        if (event?.step === undefined) continue;
        steps.push(event.step.step, omittedStepEvents);
      }
      return steps;
    })();
    await run(api, 50);
    expect((await watched).slice(-2)[0]).toBe(49);
    expect((await watched).length).toBeLessThan(20);
  });

  it('forgets jobs that ended long ago, so that a cursor stays small', async () => {
    const api = await opened();
    for (let index = 0; index < 30; index++) {
      await labeled(api, `job-past-${index}`);
      await run(api, 1);
    }
    await api.parts.db.updateTable('jobs').set({ create_time_ms: 1 }).execute();
    await labeled(api, 'job-now');
    const seen = await read(api, {}, ({ events }) => events.size === 31);
    const long = await read(api, {}, ({ cursors }) => cursors.length === 1);
    expect(seen.events.size).toBe(31);
    // The position of at most one job, not of thirty.
    expect(long.cursors[0]!.length).toBeLessThan(300);
  });

  it('refuses what it cannot be', async () => {
    const api = await opened();
    await labeled(api, 'job-one');
    const refused = async (request: DeepPartial<WatchJobsRequest>) =>
      await refusalOf((options) => api.training.watchJobs(request, options));
    expect(await refused({ names: ['jobs/job-none'] })).toMatchObject({ info: { reason: 'JOB_NOT_FOUND' } });
    expect(await refused({ names: ['job-one'], stepIntervalMs: -1 })).toMatchObject({
      fields: ['step_interval_ms'],
    });
    expect(await refused({ names: ['jobs/job-one', 'jobs/job-one', 'not a name'] })).toMatchObject({
      fields: ['names[2]'],
    });
    expect(await refused({ cursor: 'abc' })).toMatchObject({ fields: ['cursor'] });
    const { cursors } = await read(api, {}, (seen) => seen.cursors.length === 1);
    expect(await refused({ cursor: cursors[0]!, labels: { a: 'b' } })).toMatchObject({ fields: ['cursor'] });
    expect(await refused({ cursor: `${'0'.repeat(32)}.abc` })).toMatchObject({
      info: { reason: 'STORE_CHANGED', metadata: { storeId: api.parts.identity.id } },
    });
  });
});

it('a place of another store, or beyond what the store has, is refused for what it is', async () => {
  const api = await opened();
  await labeled(api, 'job-one');
  let storeId = '';
  for await (const response of api.training.watchJob({ name: 'jobs/job-one' })) {
    storeId = response.storeId;
    break;
  }
  expect(storeId).toBe(api.parts.identity.id);
  const refused = async (request: { afterSequence: number; storeId: string }) =>
    await refusalOf((options) => api.training.watchJob({ name: 'jobs/job-one', ...request }, options));
  expect(await refused({ afterSequence: 1, storeId: 'another' })).toMatchObject({
    info: { reason: 'STORE_CHANGED' },
  });
  // From this same store: it lost events that it had acknowledged.
  expect(await refused({ afterSequence: 99, storeId })).toMatchObject({ info: { reason: 'STORE_CHANGED' } });
  expect(await refused({ afterSequence: 99, storeId: '' })).toMatchObject({
    info: { reason: 'SEQUENCE_BEYOND_END' },
  });
});

it.skipIf(!hasPostgres)(
  'a watch sees jobs that another server runs, and hears of what was missed',
  async () => {
    const url = await freshDatabase();
    const one = await openApi({}, { parts: await openParts({}, undefined, undefined, url) });
    const two = await openApi({}, { parts: await openParts({}, undefined, undefined, url) });
    await readyDataset(one.parts);
    const watched = read(one, { labels: { sweep: 'one' } }, ({ events }) => {
      return ['jobs/job-one', 'jobs/job-two'].every((job) => events.get(job)?.at(-1)?.final);
    });
    await labeled(two, 'job-one');
    await run(two, 3);
    await labeled(one, 'job-two');
    await run(two, 3);
    expect(sequences(await watched, 'job-two')).toEqual([1, 2, 3, 4, 5, 6, 7]);
  },
);
