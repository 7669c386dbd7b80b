import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { sql } from 'kysely';
import { DatabaseSync } from '@photostructure/sqlite';
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { jobAtWeights } from '../../server/dist/jobs/jobAtWeights.js';
import type { Change } from '../../server/dist/store/changeFeed.js';
import { openDatabase } from '../../server/dist/store/database.js';
import { applicationId, migrations } from '../../server/dist/store/migrations.js';
import { openStore } from '../../server/dist/store/openStore.js';
import { standbyWarning } from '../../server/dist/store/standby.js';
import { freshDatabase, hasPostgres } from './postgres.js';
import { allEvents, newJob, openParts, runSpec, submit, temporaryFolder } from './parts.js';
import { ofFileAlone } from './testStore.js';

const holdStore = fileURLToPath(new URL('./holdStore.mjs', import.meta.url));

describe('the store', () => {
  it('loses nothing acknowledged and has no gap when its process is killed at any moment', async (context) => {
    ofFileAlone(context, 'its subject is a store in a file');
    for (let trial = 0; trial < 5; trial++) {
      const dataFolder = temporaryFolder();
      const child = spawn(
        process.execPath,
        [holdStore, dataFolder, JSON.stringify(newJob({ jobId: 'job-one' }))],
        { stdio: ['ignore', 'pipe', 'inherit'] },
      );
      let acknowledged = 0;
      const enough = 20 + 13 * trial;
      for await (const line of createInterface({ input: child.stdout })) {
        acknowledged = Number(line);
        // Lines printed between the kill and the end of the pipe were acknowledged as well.
        if (acknowledged >= enough) child.kill('SIGKILL');
      }
      const parts = await openParts({}, dataFolder);
      const events = await allEvents(parts, 'job-one');
      expect(acknowledged).toBeGreaterThanOrEqual(enough);
      expect(events.length).toBeGreaterThanOrEqual(acknowledged);
      expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
      // A batch is stored completely or not at all, and the job's own number matches its events.
      expect((await parts.store.find('job-one'))?.lastSequence).toBe(events.length);
      expect((events.length - 2) % 2).toBe(0);
      await parts.close();
    }
  });

  it('is held by one process, names it to a second, and is free at once when the holder is killed', async () => {
    const dataFolder = temporaryFolder();
    const holder = spawn(process.execPath, [holdStore, dataFolder], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(holder.stdout, 'data');
    await expect(openDatabase(dataFolder)).rejects.toThrow(`in use by the server with pid ${holder.pid}`);
    holder.kill('SIGKILL');
    await once(holder, 'exit');
    await (await openDatabase(dataFolder)).destroy();
  });

  it(
    'syncs the log for every commit',
    { skip: spawnSync('strace', ['-V']).error !== undefined },
    async () => {
      const dataFolder = temporaryFolder();
      const trace = join(dataFolder, 'trace');
      const child = spawn(
        'strace',
        [
          '-f',
          '-e',
          'trace=fsync,fdatasync',
          '-o',
          trace,
          process.execPath,
          holdStore,
          dataFolder,
          JSON.stringify(newJob({ jobId: 'job-one' })),
        ],
        { stdio: ['ignore', 'pipe', 'inherit'], detached: true },
      );
      let acknowledged = 0;
      for await (const line of createInterface({ input: child.stdout })) {
        acknowledged = Number(line);
        if (acknowledged === 82) process.kill(-child.pid!, 'SIGKILL');
      }
      const syncs = readFileSync(trace, 'utf8')
        .split('\n')
        .filter((line) => /f(data)?sync\(/.test(line)).length;
      expect(syncs).toBeGreaterThanOrEqual(41);
    },
  );

  it('refuses a file of another program without changing it', async () => {
    const dataFolder = temporaryFolder();
    const file = join(dataFolder, 'store.db');
    const other = new DatabaseSync(file);
    other.exec('create table recipes (name text)');
    other.close();
    const before = readFileSync(file);
    await expect(openDatabase(dataFolder)).rejects.toThrow(`${file} is a database of another program`);
    expect(readFileSync(file).equals(before)).toBe(true);
  });

  it('refuses a file that is not a database, naming it', async () => {
    const dataFolder = temporaryFolder();
    const file = join(dataFolder, 'store.db');
    writeFileSync(file, 'Dear diary, '.repeat(1000));
    await expect(openDatabase(dataFolder)).rejects.toThrow(file);
  });

  it('refuses a newer schema', async () => {
    const dataFolder = temporaryFolder();
    await (await openDatabase(dataFolder)).destroy();
    const raw = new DatabaseSync(join(dataFolder, 'store.db'));
    raw.exec(`pragma user_version = ${migrations.length + 1}`);
    raw.close();
    await expect(openDatabase(dataFolder)).rejects.toThrow(
      `has schema ${migrations.length + 1}, this server knows ${migrations.length}`,
    );
  });

  it('of a large store reads all but the history of steps when it is opened, and refuses what is damaged there', async (context) => {
    ofFileAlone(context, 'its subject is a store in a file');
    const dataFolder = temporaryFolder();
    const parts = await openParts({}, dataFolder);
    await submit(parts);
    await parts.close();
    const whole = readFileSync(join(dataFolder, 'store.db'));
    const raw = new DatabaseSync(join(dataFolder, 'store.db'));
    const damagedTable = (table: string): string => {
      const found = raw.prepare('select rootpage from sqlite_schema where name = ?').get(table);
      const { rootpage } = found as { rootpage: number };
      const folder = temporaryFolder();
      const at = (rootpage - 1) * 4096;
      const bytes = [whole.subarray(0, at), Buffer.alloc(4096, 0xa5), whole.subarray(at + 4096)];
      writeFileSync(join(folder, 'store.db'), Buffer.concat(bytes));
      return folder;
    };
    const [events, jobs, again] = ['events', 'jobs', 'events'].map(damagedTable) as [string, string, string];
    raw.close();
    await expect(openDatabase(events)).rejects.toThrow(/store\.db is damaged/);
    await expect(openDatabase(jobs, { wholeCheckBytesMax: 0 })).rejects.toThrow(
      /store\.db (is damaged|cannot be used)/,
    );
    const db = await openDatabase(again, { wholeCheckBytesMax: 0 });
    // It is detected when it is read.
    await expect(db.selectFrom('events').selectAll().execute()).rejects.toThrow(/malformed/);
    await db.destroy();
  });

  it('refuses a truncated or damaged file', async (context) => {
    ofFileAlone(context, 'its subject is a store in a file');
    const dataFolder = temporaryFolder();
    const parts = await openParts({}, dataFolder);
    for (let count = 0; count < 50; count++) await submit(parts);
    await parts.close();
    const file = join(dataFolder, 'store.db');
    const whole = readFileSync(file);
    await (await openDatabase(dataFolder)).destroy();

    // A separate folder for each: what a refused store still locks is freed when its process ends.
    const truncated = temporaryFolder();
    writeFileSync(join(truncated, 'store.db'), whole.subarray(0, whole.length / 2));
    await expect(openDatabase(truncated)).rejects.toThrow(/store\.db (is damaged|cannot be used)/);

    const damaged = temporaryFolder();
    writeFileSync(
      join(damaged, 'store.db'),
      Buffer.concat([whole.subarray(0, 4096), Buffer.alloc(4096, 0xa5), whole.subarray(8192)]),
    );
    await expect(openDatabase(damaged)).rejects.toThrow(/store\.db (is damaged|cannot be used)/);
  });

  it('does not begin with an empty one where a store was lost', async () => {
    const dataFolder = temporaryFolder();
    await (await openDatabase(dataFolder)).destroy();
    mkdirSync(join(dataFolder, 'jobs', 'job-one'), { recursive: true });
    rmSync(join(dataFolder, 'store.db'));
    await expect(openDatabase(dataFolder)).rejects.toThrow('missing');
    writeFileSync(join(dataFolder, 'store.db'), '');
    await expect(openDatabase(dataFolder)).rejects.toThrow('empty');
  });

  it('opens a folder of schema 5 with what it holds', async (context) => {
    ofFileAlone(context, 'its subject is a store in a file');
    const dataFolder = temporaryFolder();
    const raw = new DatabaseSync(join(dataFolder, 'store.db'));
    raw.exec(`pragma journal_mode = wal; pragma application_id = ${applicationId}; pragma user_version = 5`);
    for (const { sqlite } of migrations.slice(0, 5)) raw.exec(sqlite);
    const spec = { ...runSpec(), dataset: 'datasets/tales', baseWeightsName: 'weights/llama' };
    const origin = { jobId: 'job-zero', step: 5, folder: 'step-5-1', manifestSha256: '' };
    raw.exec(
      `insert into jobs (id, display_name, labels, spec, state, state_reason, progress, attempt, attempts_without_progress,
           not_before_ms, last_sequence, version, priority, create_time_ms, update_time_ms, origin)
         values ('job-one', 'One', '${JSON.stringify({ 'team"': 'a b' })}', '${JSON.stringify(spec)}', 'paused', '', '{}', 1, 0, 0, 3, 1, 0, 1700000000000, 1700000000000, '${JSON.stringify(origin)}')`,
    );
    const restart = JSON.stringify({ kind: 'restart', restart: 1, modules: [] });
    raw.exec(`insert into events values ('job-one', 1, 5, 1, 0, '{"kind":"step","step":0}'),
      ('job-one', 2, 6, 1, 0, '${restart}'), ('job-one', 3, 7, 2, 0, '${restart}');
      insert into requests values ('r1', 'digest', 'job-one', 5);
      insert into artifacts (job_id, id, kind, step, size_bytes, create_time_ms, request_id, request_digest)
        values ('job-one', 'export-1', 'mergedModel', 5, 0, 5, 'r2', 'other');
      insert into datasets values ('tales', '', 'uploading', null, '{}', null, 5);
      insert into weights values ('llama', '', 'uploading', null, 5)`);
    raw.close();
    writeFileSync(join(dataFolder, 'page-token.key'), Buffer.alloc(32, 7));

    const parts = await openParts({}, dataFolder);
    const filter = { states: [], order: 'newestFirst', after: null, jobsMax: 10 } as const;
    const { jobs } = await parts.store.list({ ...filter, states: [], labels: { 'team"': 'a b' } });
    expect(jobs.map(({ id, origin, createTimeMs }) => [id, origin?.jobId, createTimeMs])).toEqual([
      ['job-one', 'job-zero', 1_700_000_000_000],
    ]);
    const restarts = await parts.journal.restartsAfter('job-one', 0, 10);
    expect(restarts.map(({ sequence, attempt }) => [sequence, attempt])).toEqual([[3, 2]]);
    expect(await jobAtWeights(parts.db, 'weights/llama')).toBe('jobs/job-one');
    const rows = await parts.db.selectFrom('requests').select(['request_id', 'subject', 'tenant']).execute();
    expect(rows).toEqual([
      { request_id: 'r1', subject: 'jobs/job-one', tenant: 'default' },
      { request_id: 'r2', subject: 'jobs/job-one/artifacts/export-1', tenant: 'default' },
    ]);
    const names = await parts.db
      .selectFrom('jobs')
      .innerJoin('job_datasets', 'job_datasets.job_id', 'jobs.id')
      .select(['name', 'dataset_id', 'origin_job_id'])
      .executeTakeFirst();
    expect(names).toEqual({ name: 'job-one', dataset_id: 'tales', origin_job_id: 'job-zero' });
    expect((await parts.datasets.find('tales'))?.state).toBe('uploading');
    expect((await parts.weights.find('llama'))?.state).toBe('uploading');
    expect(parts.storeInfo.pageTokenKey.equals(Buffer.alloc(32, 7))).toBe(true);
    await parts.close();
    const again = await openParts({}, dataFolder);
    expect(again.storeInfo).toEqual(parts.storeInfo);
  });
});

describe.skipIf(!hasPostgres)('a store in PostgreSQL', () => {
  it('is made once by servers that start at once, and keeps its identity', async () => {
    const url = await freshDatabase();
    const stores = await Promise.all([1, 2, 3].map(async () => await openStore(temporaryFolder(), { url })));
    expect(new Set(stores.map(({ info }) => info.incarnation)).size).toBe(1);
    const { rows } = await sql<{ version: number }>`select version from schema_version`.execute(
      stores[0]!.db,
    );
    expect(rows).toEqual([{ version: migrations.length }]);
    await Promise.all(stores.map(async (store) => await store.close()));
  });

  it('warns of a database that has what was acknowledged on one disk alone', async () => {
    const store = await openStore(temporaryFolder(), { url: await freshDatabase() });
    expect(await standbyWarning(store.db)).toMatch(/^PostgreSQL has no synchronous standby/);
    try {
      // For all databases of this PostgreSQL: nothing can be committed until it is reset.
      await sql`alter system set synchronous_standby_names = '*'`.execute(store.db);
      await sql`select pg_reload_conf()`.execute(store.db);
      await expect.poll(async () => await standbyWarning(store.db)).toBeUndefined();
    } finally {
      await sql`alter system reset synchronous_standby_names`.execute(store.db);
      await sql`select pg_reload_conf()`.execute(store.db);
    }
    await expect.poll(async () => await standbyWarning(store.db)).toBeDefined();
    await store.close();
  });

  it('refuses a newer schema, tables of another program, a database that loses commits, and a server that is not there', async () => {
    const url = await freshDatabase();
    const store = await openStore(temporaryFolder(), { url });
    await sql`update schema_version set version = ${migrations.length + 1}`.execute(store.db);
    await store.close();
    await expect(openDatabase('', { url })).rejects.toThrow(
      `has schema ${migrations.length + 1}, this server knows ${migrations.length}`,
    );

    const other = await freshDatabase();
    const client = new pg.Client({ connectionString: other });
    await client.connect();
    await client.query('create table jobs (name text)');
    await client.end();
    await expect(openDatabase('', { url: other })).rejects.toThrow('a table jobs of another program');

    const nobody = 'postgres://relora:secret@127.0.0.1:1/none';
    await expect(openDatabase('', { url: nobody })).rejects.toThrow(
      /^postgres:\/\/relora@127\.0\.0\.1:1\/none cannot be used \(.*ECONNREFUSED/,
    );
  });

  it('holds what SQLite holds: large numbers, sums and counts as numbers, every letter', async () => {
    const parts = await openParts({}, temporaryFolder(), undefined, await freshDatabase());
    const name = 'Ein \u0001 Käse 🙂';
    const { id } = await submit(parts, { displayName: name });
    await parts.db
      .updateTable('jobs')
      .set({ end_time_ms: 2 ** 53 - 1 })
      .execute();
    expect(await parts.store.find(id)).toMatchObject({ displayName: name, endTimeMs: 2 ** 53 - 1 });
    const { sum } = await parts.db
      .selectFrom('jobs')
      .select(({ fn }) => fn.sum<number>('end_time_ms').as('sum'))
      .executeTakeFirstOrThrow();
    expect(sum).toBe(2 ** 53 - 1);
    expect(await parts.store.countByState()).toMatchObject({ queued: 1, failed: 0 });
  });

  it('notifies other servers of its changes, and again of all when the connection was cut', async () => {
    const url = await freshDatabase();
    const [here, there] = await Promise.all(
      [1, 2].map(async () => await openStore(temporaryFolder(), { url })),
    );
    const heard: (Change | null)[] = [];
    let wake = (): void => {};
    there!.feed.listen((change) => {
      heard.push(change);
      wake();
    });
    const untilHeard = async (wanted: (change: Change | null) => boolean): Promise<void> => {
      while (!heard.some(wanted)) await new Promise<void>((resolve) => (wake = resolve));
    };
    const change: Change = {
      topic: 'job',
      id: 'job-one',
      state: 'queued',
      stopRequest: null,
      updateNumber: 0,
    };
    here!.feed.announce(change);
    await untilHeard((found) => found?.id === 'job-one');
    expect(heard.filter((found) => found !== null)).toEqual([change]);

    heard.length = 0;
    await sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name like '%feed'`.execute(
      here!.db,
    );
    await untilHeard((found) => found === null);
    for (;;) {
      // An announcement during the interruption may be lost, in which case null is sent.
      here!.feed.announce({ ...change, id: 'job-two' });
      const late = new Promise((resolve) => setTimeout(resolve, 200));
      await Promise.race([untilHeard((found) => found?.id === 'job-two'), late]);
      if (heard.some((found) => found?.id === 'job-two')) break;
    }
    await Promise.all([here!.close(), there!.close()]);
  });
});
