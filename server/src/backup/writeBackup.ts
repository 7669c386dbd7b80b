import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { link, mkdir, open, readdir, rm } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { sql, type Transaction } from 'kysely';
import type { Database } from '../store/database.js';
import { filesOf } from '../store/diskFiles.js';
import { syncFolder } from '../store/folders.js';
import { migrations } from '../store/migrations.js';
import type { Schema } from '../store/schema.js';
import { BlobDamaged, type Stage } from '../store/stage.js';
import { BackupFailed, folderOf, keptTables, manifestName, type Backup } from './backup.js';

export interface BackupSource {
  db: Database;
  stage: Stage;
  dataFolder: string;
  incarnation: string;
}

const rowsPerRead = 2000;
/** How often rows are read again because their files were deleted before they were copied. */
const triesMax = 5;

/**
 * Writes everything in a store into a new folder, while servers use it: the rows as of one moment, then the files that they name.
 * Unfinished uploads are left out.
 */
export async function writeBackup(source: BackupSource, folder: string): Promise<Backup> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  if ((await readdir(folder)).length > 0) throw new BackupFailed(`${folder} is not empty: name a new folder`);
  for (let tries = 1; ; tries++) {
    const { tables, folders } = await writeRows(source.db, join(folder, 'tables'));
    const copied = await copyFolders(source, folders, join(folder, 'files'));
    if (copied !== undefined) {
      const backup: Backup = {
        formatVersion: 1,
        schema: migrations.length,
        createTimeMs: Date.now(),
        incarnation: source.incarnation,
        tables,
        ...copied,
      };
      await writeWhole(join(folder, manifestName), `${JSON.stringify(backup, null, 2)}\n`);
      await syncFolder(folder);
      return backup;
    }
    if (tries === triesMax)
      throw new BackupFailed(
        'Checkpoints are replaced faster than they can be copied: use a faster disk for the backup',
      );
    for (const name of ['tables', 'files']) await rm(join(folder, name), { recursive: true, force: true });
  }
}

/** All rows as of one moment, one file of JSON lines per table. */
async function writeRows(
  db: Database,
  folder: string,
): Promise<{ tables: Backup['tables']; folders: Set<string> }> {
  await mkdir(folder, { recursive: true });
  const names = await keptTables(db);
  const folders = new Set<string>();
  const isPostgres = names.length > 0 && (await isOnPostgres(db));
  const tables = await db.transaction().execute(async (trx) => {
    if (isPostgres) await sql`set transaction isolation level repeatable read, read only`.execute(trx);
    const written: Backup['tables'] = [];
    for (const name of names) {
      const file = await open(join(folder, `${name}.jsonl`), 'wx', 0o600);
      const hash = createHash('sha256');
      let rowCount = 0;
      try {
        const keys = await keysOf(trx, name, isPostgres);
        for (let after: unknown[] | undefined; ;) {
          const order = sql.join(keys.map((key) => sql.ref(key)));
          const from = after === undefined ? sql`` : sql`where (${order}) > (${sql.join(after)})`;
          const { rows } = await sql<Record<string, unknown>>`
            select * from ${sql.table(name)} ${from} order by ${order} limit ${rowsPerRead}`.execute(trx);
          const text = rows.map((row) => `${JSON.stringify(row, bytesAsText)}\n`).join('');
          hash.update(text);
          await file.writeFile(text);
          for (const row of rows) for (const each of folderOf(name, row)) folders.add(each);
          rowCount += rows.length;
          if (rows.length < rowsPerRead) break;
          after = keys.map((key) => rows.at(-1)![key]);
        }
        await file.sync();
      } finally {
        await file.close();
      }
      written.push({ name, rowCount, sha256: hash.digest('hex') });
    }
    return written;
  });
  await syncFolder(folder);
  return { tables, folders };
}

async function isOnPostgres(db: Database): Promise<boolean> {
  return await sql`select pg_backend_pid()`.execute(db).then(
    () => true,
    () => false,
  );
}

/** Undefined if a job's newest checkpoint was deleted meanwhile: then the rows are too old. */
async function copyFolders(
  { db, stage, dataFolder }: BackupSource,
  folders: ReadonlySet<string>,
  target: string,
): Promise<Pick<Backup, 'files' | 'dropped'> | undefined> {
  const files: Backup['files'] = [];
  const dropped: Backup['dropped'] = [];
  const kept = new Set<string>();
  const links = new Map<string, Backup['files'][number]>();
  await mkdir(target, { recursive: true });
  for (const name of folders) {
    const [, jobId = '', kind, folder = ''] = name.split('/');
    const release = await stage.take(name).catch((error: unknown) => {
      if (error instanceof BlobDamaged) return undefined;
      throw error;
    });
    let count = 0;
    try {
      const root = join(dataFolder, name);
      for await (const { path, key, linkCount } of filesOf(root)) {
        const to = join(name, relative(root, path));
        await mkdir(dirname(join(target, to)), { recursive: true });
        const twin = linkCount > 1 ? links.get(key) : undefined;
        if (twin !== undefined) {
          await link(join(target, twin.path), join(target, to));
          files.push({ ...twin, path: to });
        } else {
          const copied = await copyFile(path, join(target, to)).catch((error: NodeJS.ErrnoException) => {
            if (error.code === 'ENOENT') return undefined; // deleted while it was being copied
            throw error;
          });
          if (copied === undefined) {
            count = 0;
            break;
          }
          files.push({ path: to, ...copied });
          if (linkCount > 1) links.set(key, files.at(-1)!);
        }
        count++;
      }
    } finally {
      release?.();
    }
    if (kind !== 'checkpoints') {
      if (count === 0) throw new BackupFailed(`${name} is missing or damaged: see relora scrub`);
    } else if (count > 0 && (await isThere(db, jobId, folder))) kept.add(jobId);
    else {
      dropped.push({ jobId, folder });
      for (let index = files.length - 1; index >= 0; index--)
        if (files[index]!.path.startsWith(`${name}/`)) files.splice(index, 1);
      await rm(join(target, name), { recursive: true, force: true });
    }
  }
  return dropped.some(({ jobId }) => !kept.has(jobId)) ? undefined : { files, dropped };
}

async function isThere(db: Database, jobId: string, folder: string): Promise<boolean> {
  const row = await db
    .selectFrom('checkpoints')
    .select('folder')
    .where('job_id', '=', jobId)
    .where('folder', '=', folder)
    .executeTakeFirst();
  return row !== undefined;
}

async function copyFile(from: string, to: string): Promise<{ sizeBytes: number; sha256: string }> {
  const hash = createHash('sha256');
  let sizeBytes = 0;
  const file = await open(to, 'wx', 0o600);
  try {
    for await (const piece of createReadStream(from, { highWaterMark: 1 << 20 })) {
      hash.update(piece as Buffer);
      sizeBytes += (piece as Buffer).length;
      await file.writeFile(piece as Buffer);
    }
    await file.sync();
  } catch (error) {
    await rm(to, { force: true });
    throw error;
  } finally {
    await file.close();
  }
  return { sizeBytes, sha256: hash.digest('hex') };
}

async function writeWhole(path: string, text: string): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** JSON cannot contain bytes. */
function bytesAsText(_key: string, value: unknown): unknown {
  const data = (value as { type?: unknown; data?: unknown } | null)?.data;
  const isBuffer = (value as { type?: unknown } | null)?.type === 'Buffer' && Array.isArray(data);
  if (isBuffer) return { base64: Buffer.from(data as number[]).toString('base64') };
  return value instanceof Uint8Array ? { base64: Buffer.from(value).toString('base64') } : value;
}

/** Columns of a table's primary key, by which it is read page by page. */
async function keysOf(trx: Transaction<Schema>, table: string, isPostgres: boolean): Promise<string[]> {
  const query = isPostgres
    ? sql<{ name: string }>`
        select a.attname as name from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
        where i.indrelid = ${table}::regclass and i.indisprimary order by array_position(i.indkey::int[], a.attnum::int)`
    : sql<{ name: string }>`select name from pragma_table_info(${table}) where pk > 0 order by pk`;
  return (await query.execute(trx)).rows.map(({ name }) => name);
}
