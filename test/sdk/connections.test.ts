import { JobState, parseJobSpec } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { tinySpec, tinyText } from '../e2e/tinyJob.js';
import { patienceMs } from '../patience.mjs';
import { brokenServer, sequencesOf, step } from './brokenServer.js';
import { realServer } from './realServer.js';

test('a thousand waits for a job, under one signal, and calls beside them', async () => {
  const { client } = await realServer({ RELORA_SLOTS: '1' });
  const files = [{ content: tinyText(), fileName: 'tiny.txt' }];
  await client.uploadDataset({ datasetId: 'tiny-text', files });
  // The only slot is taken, so the second job starts only when all clients are waiting for it.
  const first = await client.createJob(parseJobSpec(tinySpec(100_000)));
  const { name } = await client.createJob(parseJobSpec(tinySpec(20)));
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => void warnings.push(warning);
  process.on('warning', onWarning);
  onTestFinished(() => void process.off('warning', onWarning));

  const { signal } = new AbortController();
  const waiting = Array.from({ length: 1000 }, () => client.waitForJob(name, { signal }));
  const all = Promise.all(waiting);
  // Would be delayed if streams waited for the end of others.
  expect((await client.getJob(name, { signal, deadlineMs: patienceMs })).name).toBe(name);
  await client.cancelJob(first.name);
  expect(new Set((await all).map(({ state }) => state))).toEqual(new Set([JobState.SUCCEEDED]));
  expect(warnings).toEqual([]);
});

test('streams beyond the limits wait for others to end, and can be given up', async () => {
  const ends: (() => void)[] = [];
  let openCount = 0;
  const client = await brokenServer(
    {
      async *watchJob() {
        openCount++;
        await new Promise<void>((resolve) => ends.push(resolve));
        openCount--;
        yield step(1, { final: true });
      },
      getJob: async () => ({ job: { name: 'jobs/job-1' } }),
    },
    { streams: { streamsPerConnection: 2, connectionsMax: 2 } },
  );
  const watches = Array.from({ length: 6 }, () => sequencesOf(client.watch('jobs/job-1')));
  await expect.poll(() => ends.length).toBe(4);
  const abort = new AbortController();
  const given = sequencesOf(client.watch('jobs/job-1', { signal: abort.signal }));
  abort.abort();
  await expect(given).rejects.toMatchObject({ code: 'CANCELLED' });
  await client.getJob('jobs/job-1'); // unary calls have a separate connection
  expect(openCount).toBe(4);
  for (let ended = 0; ended < 6; ended++) {
    await expect.poll(() => ends.length).toBeGreaterThan(ended);
    expect(openCount).toBeLessThanOrEqual(4);
    ends[ended]!();
  }
  expect(await Promise.all(watches)).toEqual(Array.from({ length: 6 }, () => [1]));
});
