import { Status } from 'nice-grpc';
import { expect, test } from 'vitest';
import { brokenServer, refusal, step, unavailable } from './brokenServer.js';

const of = (job: string, sequence: number, final = false) => ({
  job: `jobs/${job}`,
  ...step(sequence, { final }),
});
const cursorOf = (cursor: string) => ({ cursor });

test('a broken stream of many jobs is opened again at the last cursor, and what comes twice is left out', async () => {
  const opened: string[] = [];
  const client = await brokenServer({
    async *watchJobs({ cursor }) {
      opened.push(cursor);
      if (opened.length === 1) {
        yield cursorOf('store.0');
        yield of('a', 1);
        yield of('b', 1, true);
        yield cursorOf('store.1');
        yield of('a', 2);
        yield of('c', 1, true);
        throw unavailable();
      }
      // The first stream repeats from its start; later ones continue after the last cursor.
      yield cursorOf(`store.${opened.length}`);
      if (opened.length === 2) yield of('c', 1, true);
      if (opened.length === 2) throw unavailable();
      yield of('c', 1, true);
      yield of('a', 2);
      yield of('a', 3, true);
      yield cursorOf('store.9');
    },
  });
  const cursors: string[] = [];
  const events = [];
  for await (const { job, sequence, storeId } of client.watchJobs({
    labels: { a: 'b' },
    onCursor: (cursor) => cursors.push(cursor),
  }))
    events.push(`${job} ${sequence} ${storeId}`);
  expect(events).toEqual([
    'jobs/a 1 store',
    'jobs/b 1 store',
    'jobs/a 2 store',
    'jobs/c 1 store',
    'jobs/a 3 store',
  ]);
  expect(opened).toEqual(['', 'store.1', 'store.2']);
  expect(cursors.at(-1)).toBe('store.9');
});

test('a number that was left out is an error', async () => {
  const client = await brokenServer({
    async *watchJobs() {
      yield of('a', 1);
      yield of('a', 3);
    },
  });
  await expect(async () => {
    for await (const _ of client.watchJobs()) void _;
  }).rejects.toMatchObject({ reason: 'SEQUENCE_GAP' });
});

test('where the store is another one by then it says so, and begins again without a cursor', async () => {
  const opened: string[] = [];
  const client = await brokenServer({
    async *watchJobs({ cursor }, context) {
      opened.push(cursor);
      if (cursor !== '') throw refusal(context, Status.FAILED_PRECONDITION, 'STORE_CHANGED');
      yield of('a', 1, true);
    },
  });
  const kinds: string[] = [];
  for await (const { kind, job } of client.watchJobs({ cursor: 'old.1' })) kinds.push(`${kind} ${job}`);
  expect(kinds).toEqual(['storeChanged ', 'step jobs/a']);
  expect(opened).toEqual(['old.1', '']);
});
