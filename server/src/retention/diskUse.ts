import { lstat, readdir, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database } from '../store/database.js';

export interface DiskEntry {
  /** jobs/…, datasets/… or weights/… */
  name: string;
  bytes: number;
  /** Of what is deleted. */
  purgeTimeMs: number | null;
}

export interface DiskUse {
  jobBytes: number;
  datasetBytes: number;
  weightsBytes: number;
  storeBytes: number;
  /** Of what is deleted and not purged yet. */
  deletedBytes: number;
  /** The largest first. */
  entries: DiskEntry[];
}

const kinds = ['jobs', 'datasets', 'weights'] as const;

/** What the disk holds of a store. Folders are walked: two who ask at once get the answer to one walk. */
export class DiskReader {
  private present: Promise<DiskUse> | undefined;

  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
  ) {}

  async read(): Promise<DiskUse> {
    return await (this.present ??= readDiskUse(this.db, this.dataFolder).finally(() => {
      this.present = undefined;
    }));
  }

  async freeBytes(): Promise<number> {
    const { bavail, bsize } = await statfs(this.dataFolder);
    return bavail * bsize;
  }

  /** Bytes that are free again when a job or data set is gone: what others share with it stays. */
  async freedBytes(kind: 'jobs' | 'datasets', id: string): Promise<number> {
    return await freedBytes(join(this.dataFolder, kind, id));
  }
}

/** Looks at every file of a data folder. What several names share, as checkpoints do, counts once. */
async function readDiskUse(db: Database, dataFolder: string): Promise<DiskUse> {
  const purgeTimes = await readPurgeTimes(db);
  const counted = new Set<string>();
  const entries: DiskEntry[] = [];
  const sums = { jobs: 0, datasets: 0, weights: 0 };
  for (const kind of kinds) {
    for (const id of await namesIn(join(dataFolder, kind))) {
      const name = `${kind}/${id}`;
      const bytes = await bytesOf(join(dataFolder, kind, id), counted);
      sums[kind] += bytes;
      entries.push({ name, bytes, purgeTimeMs: purgeTimes.get(name) ?? null });
    }
  }
  let storeBytes = 0;
  for (const name of ['store.db', 'store.db-wal'])
    storeBytes += await bytesOf(join(dataFolder, name), counted);
  entries.sort((a, b) => b.bytes - a.bytes);
  return {
    jobBytes: sums.jobs,
    datasetBytes: sums.datasets,
    weightsBytes: sums.weights,
    storeBytes,
    deletedBytes: entries.reduce((sum, entry) => sum + (entry.purgeTimeMs === null ? 0 : entry.bytes), 0),
    entries,
  };
}

async function freedBytes(folder: string): Promise<number> {
  const links = new Map<string, { bytes: number; left: number }>();
  let bytes = 0;
  for await (const file of filesOf(folder)) {
    if (file.linkCount === 1) bytes += file.bytes;
    else {
      const link = links.get(file.key) ?? { bytes: file.bytes, left: file.linkCount };
      links.set(file.key, { ...link, left: link.left - 1 });
    }
  }
  for (const link of links.values()) if (link.left === 0) bytes += link.bytes;
  return bytes;
}

async function readPurgeTimes(db: Database): Promise<Map<string, number>> {
  const times = new Map<string, number>();
  for (const kind of kinds) {
    const rows = await db
      .selectFrom(kind)
      .select(['id', 'purge_time_ms'])
      .where('purge_time_ms', 'is not', null)
      .execute();
    for (const { id, purge_time_ms } of rows) times.set(`${kind}/${id}`, purge_time_ms!);
  }
  return times;
}

async function bytesOf(path: string, counted: Set<string>): Promise<number> {
  let bytes = 0;
  for await (const file of filesOf(path)) {
    if (file.linkCount > 1) {
      if (counted.has(file.key)) continue;
      counted.add(file.key);
    }
    bytes += file.bytes;
  }
  return bytes;
}

/** The file, or all files below the folder; what is removed meanwhile is left out. */
async function* filesOf(path: string): AsyncGenerator<{ key: string; linkCount: number; bytes: number }> {
  const stats = await lstat(path).catch(() => undefined);
  if (stats === undefined) return;
  if (stats.isDirectory()) {
    for (const name of await namesIn(path)) yield* filesOf(join(path, name));
    return;
  }
  // Blocks have 512 bytes, whatever the file system's are.
  yield { key: `${stats.dev} ${stats.ino}`, linkCount: stats.nlink, bytes: stats.blocks * 512 };
}

async function namesIn(folder: string): Promise<string[]> {
  return await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return [];
    throw error;
  });
}
