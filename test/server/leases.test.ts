import type { ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { sql } from 'kysely';
import pg from 'pg';
import { describe, expect, it, onTestFinished } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import type { Change } from '../../server/dist/store/changeFeed.js';
import { isStoreAway } from '../../server/dist/store/storeError.js';
import { livingServers } from '../../server/dist/store/servers.js';
import type { NewExport } from '../../server/dist/artifacts/artifactExports.js';
import {
  allEvents,
  claim,
  execution,
  startHalfServer,
  jobWhen,
  newJob,
  openParts,
  readyDataset,
  runSpec,
  scriptedTrainer,
  statesOf,
  stepEvent,
  submit,
  temporaryFolder,
  untilGone,
  type Parts,
} from './parts.js';
import { freshDatabase, hasPostgres } from './postgres.js';

const leaseMs = 600;
const settings = { RELORA_LEASE_SECONDS: String(leaseMs / 1000), RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '9' };

/** Servers with a common database and folder. */
async function servers(count: number, changes: Record<string, string> = {}): Promise<Parts[]> {
  const url = await freshDatabase();
  const folder = temporaryFolder();
  const all: Parts[] = [];
  for (let index = 0; index < count; index++)
    all.push(await openParts({ ...settings, ...changes }, folder, scriptedTrainer, url));
  return all;
}

async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}

/** A server in its own process, which runs the job until it has reported a step. */
async function otherServer(folder: string, url: string, jobId: string, step: number) {
  const job = newJob({ jobId, spec: runSpec('slow', { stepCount: 60 }) });
  const server = await startHalfServer(folder, scriptedTrainer, job, settings, url);
  onTestFinished(() => void server.kill('SIGKILL'));
  const reported = await new Promise<{ pid: number }>((resolve) => {
    createInterface({ input: server.stdout }).on('line', (line) => {
      const entry = JSON.parse(line) as { step: number; pid?: number };
      if (entry.step >= step && entry.pid !== undefined) resolve({ pid: entry.pid });
    });
  });
  return { server, trainerPid: reported.pid };
}

describe.skipIf(!hasPostgres)('of several servers on one store', () => {
  it('one that ends leaves free what it had, at once', async () => {
    const [one, two] = (await servers(2, { RELORA_LEASE_SECONDS: '600' })) as [Parts, Parts];
    const { id } = await submit(one);
    await claim(one);
    expect(await two.store.freeAttempts(two.leases)).toEqual([]);
    await one.close();
    expect(await two.store.freeAttempts(two.leases)).toEqual([{ jobId: id, attempt: 1 }]);
  });

  it('each sees the others, until they end', async () => {
    const [one, two] = (await servers(2)) as [Parts, Parts];
    const living = await livingServers(one.db, leaseMs);
    expect(living.map(({ id }) => id).sort()).toEqual([one.leases.serverId, two.leases.serverId].sort());
    await two.close();
    expect((await livingServers(one.db, leaseMs)).map(({ id }) => id)).toEqual([one.leases.serverId]);
  });

  it('none takes over the job of one that beats, however long it takes', async () => {
    const [one, two] = (await servers(2)) as [Parts, Parts];
    await readyDataset(one);
    const { id } = await submit(one, { spec: runSpec('slow', { stepCount: 1000 }) });
    await one.supervisor.start();
    await jobWhen(one, id, ({ state }) => state === 'running');
    await two.supervisor.start();
    await pause(4 * leaseMs);
    expect(await one.store.find(id)).toMatchObject({ state: 'running', attempt: 1 });
  });

  it('one takes over what a dead one ran once its lease has ended, from its checkpoint', async () => {
    const url = await freshDatabase();
    const folder = temporaryFolder();
    const here = await openParts(settings, folder, scriptedTrainer, url);
    await readyDataset(here);
    const { server, trainerPid } = await otherServer(folder, url, 'job-one', 7);
    await here.supervisor.start();
    await kill(server);
    await untilGone(trainerPid);
    await jobWhen(here, 'job-one', ({ attempt }) => attempt === 2);
    const job = await jobWhen(here, 'job-one', ({ state }) => isTerminal(state));
    expect(job).toMatchObject({ state: 'succeeded', attempt: 2 });
    const resumed = (await allEvents(here, 'job-one')).find(
      ({ attempt, body }) => attempt === 2 && body.kind === 'step',
    );
    expect(resumed!.body).toMatchObject({ step: expect.any(Number) as number });
    expect((resumed!.body as { step: number }).step).toBeGreaterThanOrEqual(5);
  });

  it('one that froze past its lease changes nothing any more, and ends its trainer', async () => {
    const url = await freshDatabase();
    const folder = temporaryFolder();
    const here = await openParts(settings, folder, scriptedTrainer, url);
    await readyDataset(here);
    const { server, trainerPid } = await otherServer(folder, url, 'job-one', 7);
    server.kill('SIGSTOP');
    await here.supervisor.start();
    await jobWhen(here, 'job-one', ({ state }) => isTerminal(state));
    const after = {
      events: await allEvents(here, 'job-one'),
      checkpoints: await here.checkpoints.list('job-one'),
      artifacts: await here.artifacts.list('job-one', { after: null, artifactsMax: 100 }),
      row: await here.db.selectFrom('jobs').selectAll().where('id', '=', 'job-one').execute(),
    };
    expect(after.events.map(({ sequence }) => sequence)).toEqual(after.events.map((_, index) => index + 1));
    server.kill('SIGCONT');
    await untilGone(trainerPid);
    expect({
      events: await allEvents(here, 'job-one'),
      checkpoints: await here.checkpoints.list('job-one'),
      artifacts: await here.artifacts.list('job-one', { after: null, artifactsMax: 100 }),
      row: await here.db.selectFrom('jobs').selectAll().where('id', '=', 'job-one').execute(),
    }).toEqual(after);
    expect(await statesOf(here, 'job-one')).toEqual([
      'queued',
      'starting',
      'running',
      'queued',
      'starting',
      'running',
      'succeeded',
    ]);
  });

  it('one whose lease is over is refused, also before anybody has its job', async () => {
    const [one, two] = (await servers(2)) as [Parts, Parts];
    await readyDataset(one);
    await submit(one);
    const { id, attempt } = await claim(one); // without a lease: as by a server that died at this moment
    const key = { jobId: id, attempt };
    const rule = { attemptsWithoutProgressMax: 9, retryDelayMs: 0 };
    expect(await two.attempts.takenOver(key, 'The server ended', rule, two.leases)).toBe('stale');
    await pause(leaseMs + 50);
    expect(await two.attempts.takenOver(key, 'The server ended', rule, two.leases)).toMatchObject({
      state: 'queued',
    });
    expect(await one.attempts.append(key, [stepEvent(0)])).toBe('stale');
    expect(await two.attempts.takenOver(key, 'The server ended', rule, two.leases)).toBe('stale');
  });

  it('one makes an export, and the result of one that was slower than its lease is refused', async () => {
    const [one, two] = (await servers(2)) as [Parts, Parts];
    const { id } = await submit(one);
    const { attempt } = await claim(one);
    const body = {
      kind: 'checkpoint' as const,
      step: 10,
      path: `${one.dataFolder}/jobs/${id}/checkpoints/step-00000010-1`,
      sizeBytes: 1,
      manifestSha256: 'a'.repeat(64),
      seconds: 0,
    };
    await one.attempts.append({ jobId: id, attempt }, [{ timeMs: 1, body }]);
    await one.exports.submit({ ...wanted, jobId: id, checkpointStep: 10 });
    const slow = (await one.exports.next())!;
    expect(await two.exports.next()).toBeUndefined();
    await pause(leaseMs + 50);
    const { row } = (await two.exports.next())!;
    expect(row.epoch).toBe(slow.row.epoch + 1);
    expect(await one.exports.ready(slow.row, { files: [], castErrorMax: 0, cycle: null })).toBe(false);
    await one.exports.failed(slow.row, { reason: 'TASK_ERROR', message: '' });
    await one.exports.release(slow.row);
    expect(await one.exports.isPending(slow.row)).toBe(false);
    expect(await one.exports.next()).toBeUndefined();
    expect(await two.exports.isPending(row)).toBe(true);
    const files = [{ fileName: 'a', sizeBytes: 1, sha256: 'a' }];
    expect(await two.exports.ready(row, { files, castErrorMax: 0, cycle: null })).toBe(true);
  });

  it('the one that runs a job makes the export of its present state', async () => {
    const [one, two] = (await servers(2)) as [Parts, Parts];
    const { id } = await submit(one);
    const { attempt } = await claim(one);
    const release = one.leases.hold('jobs', id, attempt);
    await one.attempts.started({ jobId: id, attempt }, execution, 0);
    await one.exports.submit({ ...wanted, jobId: id, isRunning: true });
    expect(await two.exports.next()).toBeUndefined();
    expect(await one.exports.next()).toMatchObject({ checkpoint: null });
    release();
  });

  it('one prepares a data set, and the result of one that was slower than its lease is refused', async () => {
    const [one, two] = (await servers(2)) as [Parts, Parts];
    const file = {
      fileName: 'a.txt',
      serverPath: '/a.txt',
      format: 'text' as const,
      split: null,
      sizeBytes: 1,
      sha256: null,
    };
    const spec = { tokenizer: { kind: 'bytes' as const }, heldOutShare: 0, textField: 'text', seed: 0 };
    await one.datasets.register({ datasetId: 'text', displayName: '', files: [file], spec });
    const slow = (await one.datasets.nextToPrepare())!;
    expect(await two.datasets.nextToPrepare()).toBeUndefined();
    await pause(leaseMs + 50);
    const next = (await two.datasets.nextToPrepare())!;
    const size = { tokenCount: 1, documentCount: 1, textBytes: 1 };
    const prepared = {
      tokenizer: { kind: 'bytes' as const, vocabularySize: 257, endOfTextId: 256, sha256: '' },
      train: size,
      heldOut: size,
      manifestSha256: 'a'.repeat(64),
    };
    expect(await one.datasets.ready(slow, prepared)).toBe(false);
    await one.datasets.failed(slow, { reason: 'TASK_ERROR', message: '' });
    expect(await two.datasets.find('text')).toMatchObject({ state: 'preparing' });
    expect(await two.datasets.ready(next, prepared)).toBe(true);
  });

  it('each hears of what the others do, though not one notification arrives', async () => {
    const url = await withoutNotifications();
    const folder = temporaryFolder();
    const [one, two] = [
      await openParts(settings, folder, scriptedTrainer, url),
      await openParts(settings, folder, scriptedTrainer, url),
    ];
    const heard: (Change | null)[] = [];
    onTestFinished(one.feed.listen((change) => void heard.push(change)));
    await readyDataset(one);
    await two.supervisor.start();
    // Only the other one runs jobs: it has to find them, what is asked of them, and what waits.
    const { id } = await submit(one, { spec: runSpec('slow', { stepCount: 1000 }) });
    await jobWhen(one, id, ({ state }) => state === 'running');
    await one.control.pause(id);
    await jobWhen(one, id, ({ state }) => state === 'paused');
    await one.control.resume(id);
    await jobWhen(one, id, ({ state }) => state === 'running');
    await one.control.cancel(id);
    await jobWhen(one, id, ({ state }) => state === 'cancelled');
    expect(heard.filter((change) => change?.topic === 'job' && change.state === 'starting')).toEqual([]);
  });

  it('each counts time by the database, whatever its own clock says', async () => {
    const [one, two] = (await servers(2)) as [Parts, Parts];
    await readyDataset(one);
    const { id } = await submit(one, { spec: runSpec('slow', { stepCount: 1000 }) });
    await one.supervisor.start();
    await jobWhen(one, id, ({ state }) => state === 'running');
    const real = Date.now;
    onTestFinished(() => void (Date.now = real));
    for (const hours of [1, -1]) {
      Date.now = () => real() + hours * 3_600_000;
      await pause(2 * leaseMs); // beats notice it
      expect(Math.abs(one.leases.now() - real())).toBeLessThan(1000);
      await two.supervisor.start();
      await pause(2 * leaseMs);
      expect(await one.store.find(id)).toMatchObject({ state: 'running', attempt: 1 });
      // This includes back-offs and the queue: a job submitted now starts now.
      expect((await submit(two)).createTimeMs - real()).toBeLessThan(1000);
    }
    await expect(servers(1)).rejects.toThrow(
      /The clock of this machine is 3600 s behind that of the database/,
    );
  });

  it('one that could not reach the store itself takes nobody for dead until it beat in time again', async () => {
    const [one] = (await servers(1)) as [Parts];
    expect(one.leases.mayTakeOver).toBe(false);
    await pause(leaseMs);
    expect(one.leases.mayTakeOver).toBe(true);
    const block = performance.now() + 2 * leaseMs;
    while (performance.now() < block); // blocks the event loop
    expect(one.leases.mayTakeOver).toBe(false);
  });

  it('one whose connection ends within a transaction undoes it, and stays', async () => {
    const [one] = (await servers(1)) as [Parts];
    const refused = one.db.transaction().execute(async (trx) => {
      const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(trx);
      await sql`select pg_terminate_backend(${rows[0]!.pid})`.execute(one.db);
      await pause(100); // no statement is pending when the end is noticed
      await sql`select 1`.execute(trx);
    });
    expect(isStoreAway(await refused.catch((error: unknown) => error))).toBe(true);
    expect((await submit(one)).state).toBe('queued');
  });
});

const wanted: Omit<NewExport, 'jobId'> = {
  format: 'gguf',
  weightType: 'q8_0',
  shardBytesMax: 1e9,
  checkpointStep: null,
  isRunning: false,
  requestId: null,
  requestDigest: '0'.repeat(64),
};

/** A database on which notifications are lost: its schema comes before that of PostgreSQL, and has a pg_notify of its own. */
async function withoutNotifications(): Promise<string> {
  const url = await freshDatabase();
  const admin = new pg.Client({ connectionString: url });
  await admin.connect();
  await admin.query(`create function pg_notify(text, text) returns void language sql as ''`);
  await admin.query(`alter database ${admin.database} set search_path = public, pg_catalog`);
  await admin.end();
  return url;
}

async function kill(server: ChildProcess): Promise<void> {
  server.kill('SIGKILL');
  await new Promise((resolve) => server.once('exit', resolve));
}
