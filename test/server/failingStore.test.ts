import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openDatabase } from '../../server/dist/store/database.js';
import { SqliteConnection } from '../../server/dist/store/sqliteConnection.js';
import { canFailDisk, failingDisk } from '../faults/failingDisk.js';
import { temporaryFolder } from './parts.js';

const script = join(import.meta.dirname, 'commitOnFailingDisk.mjs');

describe.skipIf(!canFailDisk)('a store in a file, of whose calls to the disk some fail,', () => {
  it('keeps each commit that was acknowledged, also of a process that continued after failures', async () => {
    const disk = failingDisk();
    try {
      const dataFolder = temporaryFolder();
      await (await openDatabase(dataFolder)).destroy();
      const acknowledged: number[] = [];
      const [perRound, permille] = [300, 10];
      for (let round = 0; round < 20; round++) {
        disk.set(round % 2 === 0 ? 'sound' : 'broken', permille);
        const { stdout, stderr } = spawnSync(
          process.execPath,
          [script, dataFolder, ...[round * perRound, perRound, permille].map(String)],
          {
            env: { ...process.env, ...disk.settings, FAULTS_FOLDER: dataFolder },
            encoding: 'utf8',
          },
        );
        disk.set('sound');
        expect(stderr).toBe('');
        acknowledged.push(...stdout.split('\n').filter(Boolean).map(Number));
      }
      const db = await openDatabase(dataFolder);
      const rows = await db.selectFrom('blob_chunks').select('chunk_index').execute();
      await db.destroy();
      const kept = new Set(rows.map(({ chunk_index }) => chunk_index));
      expect(acknowledged.filter((key) => !kept.has(key))).toEqual([]);
      expect(disk.count).toBeGreaterThan(20);
      expect(acknowledged.length).toBeGreaterThan(perRound);
    } finally {
      disk.close();
    }
  }, 120_000);
});

describe('a store in a file', () => {
  it('reads integers beyond 2^53, rounded as numbers are', () => {
    const connection = openNames();
    connection.exec('create table counts (count integer) strict');
    const most = Number.MAX_SAFE_INTEGER;
    const insert = connection.prepare(
      'insert into counts values (?) returning count + 1 as next, 7 as small',
    );
    expect(insert.all([most])).toEqual([{ next: 2 ** 53, small: 7 }]);
    insert.all([most]);
    const sum = connection.prepare('select sum(count) as sum, count(*) as rows from counts');
    for (let time = 0; time < 2; time++) expect(sum.all()).toEqual([{ sum: 2 ** 54 - 2, rows: 2 }]);
  });

  it('refuses a text with NUL, as PostgreSQL does', () => {
    const connection = openNames();
    const insert = connection.prepare('insert into names values (?)');
    expect(() => insert.run(['Ada\0Grace'])).toThrow(
      'The store takes no text with NUL, such as "Ada\\u0000Grace"',
    );
    expect(() => connection.prepare('select * from names where name = ?').all(['\0'])).toThrow('NUL');
  });
});

function openNames(): SqliteConnection {
  const connection = new SqliteConnection(join(temporaryFolder(), 'store.db'), { busyTimeoutMs: 10 });
  connection.exec('create table names (name text primary key) strict');
  return connection;
}

describe('an error of SQLite has the name of its result code,', () => {
  const codeOf = (act: () => unknown): unknown => {
    try {
      act();
    } catch (error) {
      return (error as { code?: unknown }).code;
    }
    return 'no error';
  };
  const ways = [
    ['run', ''],
    ['all', ' returning name'],
  ] as const;

  it.each(ways)('from %s, where a row must be unique', (way, returning) => {
    const insert = openNames().prepare(`insert into names values (?)${returning}`);
    insert[way](['Ada']);
    expect(codeOf(() => insert[way](['Ada']))).toBe('SQLITE_CONSTRAINT');
    insert[way](['Grace']);
  });

  it.each(ways)('from %s, where there is no more room', (way, returning) => {
    const connection = openNames();
    connection.exec('pragma max_page_count = 3');
    const insert = connection.prepare(`insert into names values (?)${returning}`);
    expect(codeOf(() => insert[way](['x'.repeat(1e5)]))).toBe('SQLITE_FULL');
  });

  it.each(ways)('from %s, where nothing may be written', (way, returning) => {
    const connection = openNames();
    connection.exec('pragma query_only = on');
    const insert = connection.prepare(`insert into names values (?)${returning}`);
    expect(codeOf(() => insert[way](['Ada']))).toBe('SQLITE_READONLY');
  });

  it.each(ways)('from %s, where a value has the wrong type', (way, returning) => {
    const connection = openNames();
    connection.exec('create table counts (count integer) strict');
    const insert = connection.prepare(`insert into counts values (?)${returning.replace('name', 'count')}`);
    expect(codeOf(() => insert[way](['Ada']))).toBe('SQLITE_CONSTRAINT');
  });

  it('where a file cannot be opened, and where a statement is wrong', () => {
    const file = join(temporaryFolder(), 'missing', 'store.db');
    expect(codeOf(() => new SqliteConnection(file, { busyTimeoutMs: 10 }))).toBe('SQLITE_CANTOPEN');
    expect(codeOf(() => openNames().prepare('selec'))).toBe('SQLITE_ERROR');
    expect(codeOf(() => openNames().exec('selec'))).toBe('SQLITE_ERROR');
  });
});
