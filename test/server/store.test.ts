import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import Libsql from 'libsql';
import { describe, expect, it } from 'vitest';
import { openDatabase } from '../../server/dist/store/database.js';
import { migrations } from '../../server/dist/store/migrations.js';
import { allEvents, newJob, openParts, submit, temporaryFolder } from './parts.js';

const holdStore = fileURLToPath(new URL('./holdStore.mjs', import.meta.url));

describe('the store', () => {
  it('loses nothing acknowledged and has no gap when its process is killed at any moment', async () => {
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
        // What is printed between the kill and the end of the pipe was acknowledged as well: read on.
        if (acknowledged >= enough) child.kill('SIGKILL');
      }
      const parts = await openParts({}, dataFolder);
      const events = await allEvents(parts, 'job-one');
      expect(acknowledged).toBeGreaterThanOrEqual(enough);
      expect(events.length).toBeGreaterThanOrEqual(acknowledged);
      expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
      // A batch is there whole or not at all, and the job's own number agrees with its events.
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
    const other = new Libsql(file);
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
    const raw = new Libsql(join(dataFolder, 'store.db'));
    raw.exec(`pragma user_version = ${migrations.length + 1}`);
    raw.close();
    await expect(openDatabase(dataFolder)).rejects.toThrow(
      `has schema ${migrations.length + 1}, this server knows ${migrations.length}`,
    );
  });

  it('refuses a truncated or damaged file', async () => {
    const dataFolder = temporaryFolder();
    const parts = await openParts({}, dataFolder);
    for (let count = 0; count < 50; count++) await submit(parts);
    await parts.close();
    const file = join(dataFolder, 'store.db');
    const whole = readFileSync(file);
    await (await openDatabase(dataFolder)).destroy();

    // A folder each: what a refused store still holds is free when its process ends.
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

  it('does not begin anew where a store was lost', async () => {
    const dataFolder = temporaryFolder();
    await (await openDatabase(dataFolder)).destroy();
    mkdirSync(join(dataFolder, 'jobs', 'job-one'), { recursive: true });
    rmSync(join(dataFolder, 'store.db'));
    await expect(openDatabase(dataFolder)).rejects.toThrow('missing');
    writeFileSync(join(dataFolder, 'store.db'), '');
    await expect(openDatabase(dataFolder)).rejects.toThrow('empty');
  });
});
