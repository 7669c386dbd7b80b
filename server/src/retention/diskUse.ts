import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database } from '../store/database.js';
import { bytesOf, filesOf, namesIn } from '../store/diskFiles.js';

export interface DiskEntry {
  /** jobs/…, datasets/… or weights/… */
  name: string;
  bytes: number;
  /** Null if not deleted. */
  purgeTimeMs: number | null;
}

export interface DiskUse {
  jobBytes: number;
  datasetBytes: number;
  weightsBytes: number;
  storeBytes: number;
  /** Of what is deleted but not purged yet. */
  deletedBytes: number;
  /** The largest first. */
  entries: DiskEntry[];
}

const kinds = ['jobs', 'datasets', 'weights'] as const;

/** Disk use of a store. It walks the folders; concurrent requests share the result of one walk. */
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

  /** Bytes that deleting a job or data set frees, without those that it shares with others. */
  async freedBytes(kind: 'jobs' | 'datasets', id: string): Promise<number> {
    return await freedBytes(join(this.dataFolder, kind, id));
  }
}

/** Looks at every file of a data folder. Files with several names, as checkpoints share them, count once. */
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
    const due = db.selectFrom(kind).select(['id', 'purge_time_ms']).where('purge_time_ms', 'is not', null);
    // After the purge of a data set only its tokenizer is left, which stays as long as jobs that used it.
    const rows = await (kind === 'datasets' ? due.where('datasets.purged', '=', 0) : due).execute();
    for (const { id, purge_time_ms } of rows) times.set(`${kind}/${id}`, purge_time_ms!);
  }
  return times;
}
