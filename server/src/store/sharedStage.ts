import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { link, mkdir, open, rename, rm, stat, utimes } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { isDiskFault } from '@relora/engine/files';
import type { Transaction } from 'kysely';
import type { BlobStore, OpenBlob } from './blobStore.js';
import { isAtOrBelow, notePurge } from './chunkDigests.js';
import type { Database } from './database.js';
import { bytesOf, filesOf, namesIn } from './diskFiles.js';
import { folders, syncFolder } from './folders.js';
import { FolderUsers } from './folderUsers.js';
import type { BlobFileRow, Schema } from './schema.js';
import { BlobDamaged, BlobForgotten, type Maker, type Naming, type Stage } from './stage.js';

export interface SharedStageOptions {
  /** Limit for unused folders on this machine. */
  cacheBytesMax: number;
}

const pieceBytes = 1 << 20;
/** Attempts to read a blob whose digest is wrong: a bit may have flipped in transit. */
const readsMax = 5;
/** Files up to this size are read to verify that a folder is as it was given; for larger ones the length is enough. */
const readBytesMax = 1 << 20;

/**
 * The data folder as a cache, of limited size, of what is in blobs. The blobs of a job, data set or weights are named
 * `{owner}/{kind}/{sha256}-{fence}-{random}`, so none is ever overwritten, and the next folder refers to unchanged ones again. Rows say
 * which blobs a folder has. They are written in the fenced transaction of the folder's maker: a server that lost its lease leaves blobs
 * without a row, and nothing else.
 */
export class SharedStage implements Stage {
  readonly isShared = true;
  private readonly users: FolderUsers;
  private readonly taking = new Map<string, Promise<void>>();
  private readonly distrusted = new Set<string>();
  private evicting: Promise<void> = Promise.resolve();

  private constructor(
    private readonly db: Database,
    private readonly blobs: BlobStore,
    private readonly dataFolder: string,
    private readonly options: SharedStageOptions,
  ) {
    this.users = new FolderUsers(dataFolder);
  }

  /** Removes copies that an earlier server did not complete. */
  static async open(
    db: Database,
    blobs: BlobStore,
    dataFolder: string,
    options: SharedStageOptions,
  ): Promise<SharedStage> {
    await rm(folders.staging(dataFolder), { recursive: true, force: true });
    return new SharedStage(db, blobs, dataFolder, options);
  }

  async give(
    folder: string,
    { kind, fence }: Maker,
    digests: ReadonlyMap<string, string> = new Map(),
  ): Promise<Naming> {
    const root = join(this.dataFolder, folder);
    const owner = ownerOf(folder);
    const known = new Map((await this.blobsBelow(owner)).map((row) => [row.sha256, row]));
    const rows: BlobFileRow[] = [];
    const reused = new Set<string>();
    const isNew = new Set<string>();
    for await (const { path, sizeBytes } of filesOf(root)) {
      const fileName = relative(root, path);
      const sha256 = digests.get(fileName) ?? (await sha256Of(path));
      const same = known.get(sha256);
      let blob: string;
      if (same?.size_bytes === sizeBytes) {
        ({ blob } = same);
        if (!isNew.has(blob)) reused.add(blob);
      } else {
        blob = `${owner}/${kind}/${sha256}-${fence}-${randomBytes(4).toString('hex')}`;
        const stored = await this.blobs.put(
          blob,
          createReadStream(path, { highWaterMark: pieceBytes }),
          sizeBytes,
        );
        if (stored.sha256 !== sha256) {
          await this.blobs.remove(blob);
          throw new BlobDamaged(`${path} has SHA-256 ${stored.sha256}, not ${sha256}`);
        }
      }
      const row = { folder, file_name: fileName, blob, size_bytes: sizeBytes, sha256 };
      rows.push(row);
      known.set(sha256, row); // it may be listed twice
      if (!reused.has(blob)) isNew.add(blob);
    }
    return async (trx) => {
      await requireNamed(trx, [...reused]);
      await trx.deleteFrom('blob_files').where('folder', '=', folder).execute();
      for (let first = 0; first < rows.length; first += rowsInStatement)
        await trx
          .insertInto('blob_files')
          .values(rows.slice(first, first + rowsInStatement))
          .execute();
    };
  }

  async take(folder: string): Promise<() => void> {
    const release = this.users.use(folder);
    try {
      const taken =
        this.taking.get(folder) ?? this.bring(folder).finally(() => void this.taking.delete(folder));
      this.taking.set(folder, taken);
      await taken;
      return release;
    } catch (error) {
      release();
      throw error;
    }
  }

  distrust(folder: string): boolean {
    this.distrusted.add(folder);
    return true;
  }

  keep(owner: string): () => void {
    return this.users.use(owner);
  }

  async discard(folder: string): Promise<void> {
    await this.users.remove(folder);
  }

  async forget(
    trx: Transaction<Schema>,
    folder: string,
    keep: ReadonlySet<string> = new Set(),
  ): Promise<void> {
    let query = trx.deleteFrom('blob_files').where('folder', '=', folder);
    if (keep.size > 0) query = query.where('file_name', 'not in', [...keep]);
    const deleted = new Set((await query.returning('blob').execute()).map(({ blob }) => blob));
    if (deleted.size === 0) return;
    const still = await trx
      .selectFrom('blob_files')
      .select('blob')
      .where('blob', 'in', [...deleted])
      .execute();
    for (const { blob } of still) deleted.delete(blob);
    for (const blob of deleted) await notePurge(trx, blob);
  }

  async openFile(folder: string, fileName: string): Promise<OpenBlob | undefined> {
    const row = await this.db
      .selectFrom('blob_files')
      .select('blob')
      .where('folder', '=', folder)
      .where('file_name', '=', fileName)
      .executeTakeFirst();
    return row && (await this.blobs.openRead(row.blob));
  }

  private async bring(folder: string): Promise<void> {
    const rows = await this.db.selectFrom('blob_files').selectAll().where('folder', '=', folder).execute();
    if (rows.length === 0) throw new BlobDamaged(`The store has no files of ${folder}`);
    const path = join(this.dataFolder, folder);
    const nowSeconds = Date.now() / 1000;
    const readMax = this.distrusted.delete(folder) ? Infinity : readBytesMax;
    if (!(await isWhole(path, rows, readMax))) {
      await this.makeRoom(rows.reduce((sum, row) => sum + row.size_bytes, 0));
      await mkdir(dirname(path), { recursive: true });
      const temporary = join(folders.staging(this.dataFolder), randomBytes(8).toString('hex'));
      try {
        for (const row of rows) await this.fetch(row, join(temporary, row.file_name));
        await mkdir(temporary, { recursive: true });
        await syncFolder(temporary);
        await rm(path, { recursive: true, force: true }); // left by an attempt that was never named
        await rename(temporary, path);
        await syncFolder(dirname(path));
      } finally {
        await rm(temporary, { recursive: true, force: true });
      }
    }
    // The time decides which owners are evicted first.
    await utimes(join(this.dataFolder, ownerOf(folder)), nowSeconds, nowSeconds);
  }

  /** Links the blob instead, if another folder of this machine has it. */
  private async fetch(row: BlobFileRow, path: string): Promise<void> {
    await mkdir(dirname(path), { recursive: true });
    const twins = await this.db
      .selectFrom('blob_files')
      .select(['folder', 'file_name'])
      .where('blob', '=', row.blob)
      .where('folder', '!=', row.folder)
      .execute();
    for (const twin of twins) {
      const from = join(this.dataFolder, twin.folder, twin.file_name);
      if ((await sizeOf(from)) !== row.size_bytes) continue;
      if (
        await link(from, path).then(
          () => true,
          () => false,
        )
      )
        return;
    }
    const blob = await this.blobs.openRead(row.blob);
    if (blob === undefined) throw new BlobDamaged(`${row.blob} of ${row.folder} is missing in the store`);
    try {
      for (let reads = 1; ; reads++) {
        const sha256 = await copy(blob, row.size_bytes, path);
        if (sha256 === row.sha256) return;
        if (reads === readsMax)
          throw new BlobDamaged(`${row.blob} of ${row.folder} has SHA-256 ${sha256}, not ${row.sha256}`);
      }
    } finally {
      await blob.close();
    }
  }

  private async blobsBelow(owner: string): Promise<BlobFileRow[]> {
    return await this.db.selectFrom('blob_files').selectAll().where(isAtOrBelow('folder', owner)).execute();
  }

  /** Deletes the least recently used copies until `neededBytes` more are within the limit. One call at a time. */
  private async makeRoom(neededBytes: number): Promise<void> {
    this.evicting = this.evicting.catch(() => {}).then(async () => await this.evict(neededBytes));
    await this.evicting;
  }

  private async evict(neededBytes: number): Promise<void> {
    const entries: { owner: string; bytes: number; timeMs: number }[] = [];
    for (const kind of ['jobs', 'datasets', 'weights'])
      for (const id of await namesIn(join(this.dataFolder, kind))) {
        const owner = `${kind}/${id}`;
        const path = join(this.dataFolder, owner);
        const stats = await stat(path).catch(() => undefined);
        if (stats !== undefined) entries.push({ owner, bytes: await bytesOf(path), timeMs: stats.mtimeMs });
      }
    let bytes = neededBytes + entries.reduce((sum, entry) => sum + entry.bytes, 0);
    entries.sort((a, b) => a.timeMs - b.timeMs);
    for (const { owner, bytes: freed } of entries) {
      if (bytes <= this.options.cacheBytesMax) return;
      if (this.users.isUsed(owner) || !(await this.isGiven(owner)) || this.users.isUsed(owner)) continue;
      await rm(join(this.dataFolder, owner), { recursive: true, force: true });
      bytes -= freed;
    }
  }

  /** Whether the copy here can be deleted because everything is in the store: an upload in progress exists only here. */
  private async isGiven(owner: string): Promise<boolean> {
    const [kind, id = ''] = owner.split('/');
    if (kind === 'jobs') return true; // folders of running jobs are in use
    const row = await this.db
      .selectFrom(kind as 'datasets' | 'weights')
      .select('state')
      .where('id', '=', id)
      .executeTakeFirst();
    return row?.state !== 'uploading';
  }
}

const rowsInStatement = 1000;

/** `jobs/…`, `datasets/…` or `weights/…`. */
export function ownerOf(folder: string): string {
  return folder.split('/').slice(0, 2).join('/');
}

async function requireNamed(trx: Transaction<Schema>, blobs: readonly string[]): Promise<void> {
  if (blobs.length === 0) return;
  const rows = await trx
    .selectFrom('blob_files')
    .select('blob')
    .where('blob', 'in', blobs)
    // A transaction that forgets them waits for this one, and then sees who refers to them.
    .forUpdate()
    .execute();
  if (new Set(rows.map(({ blob }) => blob)).size < blobs.length)
    throw new BlobForgotten('A blob that was to be used again is gone');
}

async function isWhole(path: string, rows: readonly BlobFileRow[], readMax: number): Promise<boolean> {
  for (const row of rows) {
    const file = join(path, row.file_name);
    if ((await sizeOf(file)) !== row.size_bytes) return false;
    if (row.size_bytes > readMax) continue;
    const sha256 = await sha256Of(file).catch((error: unknown) => {
      if (isDiskFault(error)) return ''; // fetched again, it lies elsewhere on the disk
      throw error;
    });
    if (sha256 !== row.sha256) return false;
  }
  return true;
}

/** Writes a blob's bytes into a new file, or over what an earlier read left; returns their SHA-256. */
async function copy(blob: OpenBlob, sizeBytes: number, path: string): Promise<string> {
  const file = await open(path, 'w', 0o600);
  try {
    const hash = createHash('sha256');
    for await (const piece of blob.read(0, sizeBytes, pieceBytes)) {
      hash.update(piece);
      await file.writeFile(piece);
    }
    await file.sync();
    return hash.digest('hex');
  } finally {
    await file.close();
  }
}

async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.size;
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(path, { highWaterMark: pieceBytes }))
    hash.update(piece as Buffer);
  return hash.digest('hex');
}
