import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { sql } from 'kysely';
import { Status } from 'nice-grpc';
import { expect, test } from 'vitest';
import { TensorBoard } from '../../server/dist/trackers/tensorBoard.js';
import { jobSpec, openApi, refusalOf } from './apiServer.js';
import { ofFileAlone } from './testStore.js';
import {
  allEvents,
  claim,
  execution,
  jobWhen,
  openParts,
  readyDataset,
  runSpec,
  stepEvent,
  submit,
  temporaryFolder,
  type Parts,
} from './parts.js';

/** For a store in a file: prevents it from growing, which fails like a full disk, and uses up the free space in its pages. */
async function fillDisk(parts: Parts): Promise<void> {
  const { id } = await submit(parts);
  await parts.control.pause(id);
  await sql`pragma max_page_count = 1`.execute(parts.db);
  const untilRefused = async (): Promise<never> => {
    for (;;) {
      await parts.control.resume(id);
      await parts.control.pause(id);
    }
  };
  await expect(untilRefused()).rejects.toMatchObject({ code: 'SQLITE_FULL' });
}

const limitReason = 'the room of a store in a file is limited from inside';

async function makeRoom({ db }: Parts): Promise<void> {
  await sql`pragma max_page_count = 1000000`.execute(db);
}

test('on a full disk a job is refused with a code to retry, reads work, and room is all it takes', async (context) => {
  ofFileAlone(context, limitReason);
  const api = await openApi();
  await readyDataset(api.parts);
  await fillDisk(api.parts);
  const create = { spec: jobSpec(), requestId: randomUUID() };
  const refusal = await refusalOf(async (options) => {
    // The first ones may still fit into existing pages.
    for (;;)
      await api.training.createJob({ ...create, requestId: (create.requestId = randomUUID()) }, options);
  });
  expect(refusal).toMatchObject({ code: Status.RESOURCE_EXHAUSTED, info: { reason: 'DISK_FULL' } });
  expect(refusal.retry).toBeDefined();
  const { jobs } = await api.training.listJobs({});
  await makeRoom(api.parts);
  await api.training.createJob(create);
  expect((await api.training.listJobs({})).jobs).toHaveLength(jobs.length + 1);
});

test('a full disk holds up a running job and harms nothing', async (context) => {
  ofFileAlone(context, limitReason);
  const parts = await openParts();
  await readyDataset(parts);
  await parts.supervisor.start();
  const { id } = await submit(parts, { spec: runSpec('wait', { stepCount: 400 }) });
  await jobWhen(parts, id, ({ progress }) => progress.step === 3);
  await fillDisk(parts);
  const { lastSequence } = (await parts.store.find(id))!;
  writeFileSync(join(parts.dataFolder, 'jobs', id, 'go'), '');
  await expect(submit(parts)).rejects.toMatchObject({ code: 'SQLITE_FULL' });
  await makeRoom(parts);
  const job = await jobWhen(parts, id, ({ state }) => state === 'succeeded');
  expect(job.attempt).toBe(1);
  const events = await allEvents(parts, id);
  expect(events.length).toBeGreaterThan(lastSequence);
  expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
  expect(parts.storeFailures).toEqual([]);
});

test('a full disk does not hold up the end of the server; the job resumes when there is room', async (context) => {
  ofFileAlone(context, limitReason);
  const parts = await openParts();
  await readyDataset(parts);
  await parts.supervisor.start();
  const { id } = await submit(parts, { spec: runSpec('slow', { stepCount: 1000 }) });
  await jobWhen(parts, id, ({ progress }) => progress.step >= 3);
  await fillDisk(parts);
  await parts.supervisor.stop(200);
  expect(parts.storeFailures).toEqual([]);
  await makeRoom(parts);
  await parts.close();

  const again = await openParts({}, parts.dataFolder);
  await again.supervisor.start();
  await jobWhen(again, id, ({ attempt, state }) => attempt === 2 && state === 'running');
});

test('jobs wait while no claim can be stored', async (context) => {
  ofFileAlone(context, limitReason);
  const parts = await openParts();
  await readyDataset(parts);
  const { id } = await submit(parts, { spec: runSpec() });
  await fillDisk(parts);
  await expect(claim(parts)).rejects.toMatchObject({ code: 'SQLITE_FULL' });
  await parts.supervisor.start();
  await expect(submit(parts)).rejects.toMatchObject({ code: 'SQLITE_FULL' });
  expect((await parts.store.find(id))?.state).toBe('queued');
  await makeRoom(parts);
  // Queueing a job wakes the supervisor, which otherwise checks only every few seconds.
  await submit(parts);
  await jobWhen(parts, id, ({ state }) => state === 'succeeded');
  expect(parts.storeFailures).toEqual([]);
});

test('a job whose trainer the machine cannot start goes back to the queue and harms no other', async () => {
  const parts = await openParts();
  await readyDataset(parts);
  mkdirSync(join(parts.dataFolder, 'jobs'));
  writeFileSync(join(parts.dataFolder, 'jobs', 'blocked'), 'not a folder');
  await parts.supervisor.start();
  await submit(parts, { jobId: 'blocked', spec: runSpec() });
  const blocked = await jobWhen(parts, 'blocked', ({ attempt, state }) => attempt > 0 && state === 'queued');
  expect(blocked.stateReason).toContain('could not be started (EEXIST');
  const other = await submit(parts, { spec: runSpec() });
  expect((await jobWhen(parts, other.id, ({ state }) => state === 'succeeded')).attempt).toBe(1);
  expect(parts.storeFailures).toEqual([]);
});

test('a server that starts on a full disk answers, and puts right what a dead one left when there is room', async (context) => {
  ofFileAlone(context, limitReason);
  const parts = await openParts();
  await readyDataset(parts);
  const { id } = await submit(parts, { spec: runSpec() });
  await claim(parts); // by a server that is gone
  await fillDisk(parts);
  await parts.supervisor.start();
  expect((await parts.store.find(id))?.state).toBe('starting');
  expect(parts.supervisor.runningCount).toBe(0);
  await makeRoom(parts);
  await submit(parts); // wakes the supervisor, which otherwise checks only every few seconds
  expect(await jobWhen(parts, id, ({ state }) => state === 'succeeded')).toMatchObject({ attempt: 2 });
  expect(parts.storeFailures).toEqual([]);
});

test.skipIf(process.platform !== 'linux')(
  'an event file of TensorBoard that a full disk cut short has everything when there is room',
  async () => {
    const parts = await openParts();
    const { id } = await submit(parts);
    const key = { jobId: id, attempt: (await claim(parts)).attempt };
    await parts.attempts.started(key, execution, 0);
    const steps = Array.from({ length: 100 }, (_, step) => stepEvent(step));
    await parts.attempts.append(key, steps);
    const job = (await parts.store.find(id))!;
    const events = await allEvents(parts, id);
    const [first, rest] = [events.slice(0, 10), events.slice(10)];
    await parts.close(); // the limit below applies to the files of this process
    const folders = [temporaryFolder(), temporaryFolder()];
    const [whole, cut] = folders.map((folder) => new TensorBoard(folder, parts.log));
    const bytesOf = (folder: string): Buffer => {
      const [name] = readdirSync(join(folder, id));
      return readFileSync(join(folder, id, name!));
    };
    const limitFiles = (bytes: number | 'unlimited') =>
      execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${bytes}:`]);

    await whole!.write(job, rest, await whole!.write(job, first, ''));
    const state = await cut!.write(job, first, '');
    limitFiles(bytesOf(folders[1]!).length + 1000);
    try {
      await expect(cut!.write(job, rest, state)).rejects.toMatchObject({ code: 'EFBIG' });
    } finally {
      limitFiles('unlimited');
    }
    await cut!.write(job, rest, state);
    expect(bytesOf(folders[1]!).equals(bytesOf(folders[0]!))).toBe(true);
  },
);
