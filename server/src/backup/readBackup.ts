import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { copyFile, link, mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { sql, type Transaction } from 'kysely';
import { syncFolder } from '../store/folders.js';
import { migrations } from '../store/migrations.js';
import { claimBlobs } from '../store/openBlobs.js';
import type { Store } from '../store/openStore.js';
import type { Schema } from '../store/schema.js';
import type { Maker, Naming } from '../store/stage.js';
import { BackupFailed, manifestName, type Backup } from './backup.js';

const rowsPerInsert = 200;

/**
 * Restores a backup into an empty store of any kind, whatever it was made from: a file or PostgreSQL, a folder or S3. Every byte is first
 * compared with its digest. The store gets a new incarnation: clients that watched the old one do not get events of another history.
 */
export async function readBackup(store: Store, dataFolder: string, folder: string): Promise<Backup> {
  const backup = await readManifest(folder);
  const { db, stage } = store;
  for (const table of ['jobs', 'datasets', 'weights'] as const)
    if ((await db.selectFrom(table).select('id').limit(1).executeTakeFirst()) !== undefined)
      throw new BackupFailed('The store is not empty: a backup goes into a new one');
  for (const { name, sha256 } of backup.tables)
    await requireDigest(join(folder, 'tables', `${name}.jsonl`), sha256);
  for (const { path, sha256 } of backup.files) await requireDigest(join(folder, 'files', path), sha256);

  const namings: Naming[] = [];
  const folders = new Map<string, Backup['files']>();
  for (const file of backup.files) {
    const name = folderNameOf(file.path);
    folders.set(name, [...(folders.get(name) ?? []), file]);
  }
  const present = new Map<string, string>();
  for (const [name, files] of folders) {
    await putFolder(dataFolder, folder, name, files, present);
    const digests = new Map(files.map(({ path, sha256 }) => [path.slice(name.length + 1), sha256]));
    const release = stage.keep(name.split('/').slice(0, 2).join('/'));
    namings.push(await stage.give(name, { kind: makerOf(name), fence: 0 }, digests));
    release();
  }
  const incarnation = randomUUID();
  await db.transaction().execute(async (trx) => {
    await trx.deleteFrom('store_info').execute();
    for (const { name, rowCount } of backup.tables) await insertRows(trx, folder, name, rowCount);
    for (const { jobId, folder: checkpoint } of backup.dropped)
      await trx
        .deleteFrom('checkpoints')
        .where('job_id', '=', jobId)
        .where('folder', '=', checkpoint)
        .execute();
    for (const table of ['jobs', 'artifacts', 'datasets'] as const)
      await trx.updateTable(table).set({ lease_server: null, lease_until_ms: null }).execute();
    await trx
      .updateTable('store_info')
      .set({ value: incarnation })
      .where('key', '=', 'incarnation')
      .execute();
    for (const name of namings) await name(trx);
  });
  if (stage.isShared) await claimBlobs(store.blobs, incarnation);
  return backup;
}

async function readManifest(folder: string): Promise<Backup> {
  const text = await readFile(join(folder, manifestName), 'utf8').catch((error: NodeJS.ErrnoException) => {
    throw new BackupFailed(`${folder} is no whole backup: ${manifestName} cannot be read (${error.code})`);
  });
  const backup = JSON.parse(text) as Backup;
  if (backup.formatVersion !== 1)
    throw new BackupFailed(`${folder} has format ${String(backup.formatVersion)}, this server knows 1`);
  if (backup.schema !== migrations.length)
    throw new BackupFailed(
      `${folder} has schema ${backup.schema}, this server ${migrations.length}: restore it with the server that wrote it, then upgrade`,
    );
  return backup;
}

async function requireDigest(path: string, sha256: string): Promise<void> {
  const hash = createHash('sha256');
  try {
    for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 }))
      hash.update(piece as Buffer);
  } catch (error) {
    throw new BackupFailed(`${path} cannot be read (${(error as Error).message})`, { cause: error });
  }
  const found = hash.digest('hex');
  if (found !== sha256) throw new BackupFailed(`${path} has SHA-256 ${found}, not ${sha256}`);
}

/** Copies a folder, and links identical files, such as the frozen weights that checkpoints share. */
async function putFolder(
  dataFolder: string,
  backupFolder: string,
  name: string,
  files: Backup['files'],
  present: Map<string, string>,
): Promise<void> {
  const path = join(dataFolder, name);
  const temporary = `${path}.tmp-restore`;
  await rm(temporary, { recursive: true, force: true });
  for (const file of files) {
    const target = join(temporary, file.path.slice(name.length + 1));
    await mkdir(dirname(target), { recursive: true });
    const twin = present.get(file.sha256);
    if (
      twin !== undefined &&
      (await link(twin, target).then(
        () => true,
        () => false,
      ))
    )
      continue;
    await copyFile(join(backupFolder, 'files', file.path), target);
    const copy = await open(target, 'r+');
    await copy.sync().finally(() => copy.close());
  }
  await syncFolder(temporary);
  await rm(path, { recursive: true, force: true });
  await rename(temporary, path);
  await syncFolder(dirname(path));
  for (const file of files) present.set(file.sha256, join(dataFolder, file.path));
}

async function insertRows(
  trx: Transaction<Schema>,
  folder: string,
  table: string,
  rowCount: number,
): Promise<void> {
  const lines = createInterface({ input: createReadStream(join(folder, 'tables', `${table}.jsonl`)) });
  let batch: Record<string, unknown>[] = [];
  let count = 0;
  const insert = async (): Promise<void> => {
    const columns = Object.keys(batch[0]!);
    const values = batch.map((row) => sql`(${sql.join(columns.map((column) => readValue(row[column])))})`);
    await sql`insert into ${sql.table(table)} (${sql.join(columns.map((column) => sql.ref(column)))})
      values ${sql.join(values)}`.execute(trx);
    count += batch.length;
    batch = [];
  };
  for await (const line of lines) {
    batch.push(JSON.parse(line) as Record<string, unknown>);
    if (batch.length === rowsPerInsert) await insert();
  }
  if (batch.length > 0) await insert();
  if (count !== rowCount) throw new BackupFailed(`Table ${table} has ${count} rows, not ${rowCount}`);
}

function readValue(value: unknown): unknown {
  const { base64 } = (value ?? {}) as { base64?: unknown };
  return typeof base64 === 'string' ? Buffer.from(base64, 'base64') : value;
}

/** For example `jobs/…/checkpoints/…`, `jobs/…/artifacts/…`, `datasets/…/prepared`, `datasets/…/uploads` or `weights/…`. */
function folderNameOf(path: string): string {
  const words = path.split('/');
  return words.slice(0, { jobs: 4, datasets: 3, weights: 2 }[words[0]!] ?? 0).join('/');
}

function makerOf(name: string): Maker['kind'] {
  if (name.startsWith('jobs/')) return 'run';
  return name.endsWith('/prepared') ? 'prepared' : 'uploads';
}
