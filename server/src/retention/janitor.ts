import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import type { DatasetDeletion } from '../datasets/datasetDeletion.js';
import type { CheckpointStore } from '../jobs/checkpointStore.js';
import { terminalStates } from '../jobs/job.js';
import type { JobDeletion } from '../jobs/jobDeletion.js';
import type { BlobStore } from '../store/blobStore.js';
import type { Database } from '../store/database.js';
import { folders } from '../store/folders.js';
import { doPurges } from '../store/purges.js';
import type { Stage } from '../store/stage.js';
import { removeStrays } from '../store/strays.js';
import { isStoreBroken } from '../store/storeError.js';
import type { WeightsStore } from '../weights/weightsStore.js';
import type { DiskReader, DiskUse } from './diskUse.js';
import { surplusOf, type Keepable, type RetentionRule } from './retentionRule.js';

export interface JanitorParts {
  db: Database;
  config: Config;
  jobs: JobDeletion;
  datasets: DatasetDeletion;
  weights: WeightsStore;
  checkpoints: CheckpointStore;
  disk: DiskReader;
  blobs: BlobStore;
  stage: Stage;
  /** Whether somebody is sending bytes of it now. */
  isUploading(name: string): boolean;
  log: Logger;
  /** Called with the disk use that the last round found. */
  onDiskUse(use: DiskUse): void;
  onPurged(kind: 'job' | 'dataset' | 'checkpoint' | 'upload'): void;
  /** The store is broken: see Supervisor. */
  onStoreFailure(error: unknown): void;
}

/** How often the shared blobs are checked for strays. */
const straysMs = 3_600_000;

/** Files of a prepared data set that exports of jobs trained on it need. */
const tokenizerFiles = new Set(['manifest.json', 'tokenizer.json']);

/**
 * Removes deleted things whose purge time has come, and what the retention settings do not keep: but never a job that has not durably
 * ended, the newest good checkpoint of a job, or anything in use. Every step can be repeated, so a crash does no harm; a failed step is
 * tried again in the next round.
 */
export class Janitor {
  private timer: NodeJS.Timeout | undefined;
  private round: Promise<void> | undefined;
  private isStopping = false;
  private straysTimeMs = -Infinity;

  constructor(private readonly parts: JanitorParts) {}

  start(): void {
    this.round ??= this.clean().finally(() => {
      this.round = undefined;
      if (!this.isStopping)
        this.timer = setTimeout(() => this.start(), this.parts.config.cleanupSeconds * 1000);
    });
  }

  async stop(): Promise<void> {
    this.isStopping = true;
    clearTimeout(this.timer);
    await this.round;
  }

  /** One round. */
  async clean(): Promise<void> {
    const { db, disk, blobs } = this.parts;
    const steps = [
      async () => await this.expireJobs(),
      async () => await this.expireCheckpoints(),
      async () => await this.expireUploads(),
      async () => await this.purgeJobs(),
      async () => await this.purgeDatasets(),
      async () => void (await doPurges(db, blobs)),
      async () => await this.removeStrays(),
      async () => void (await db.deleteFrom('requests').where('expire_time_ms', '<=', Date.now()).execute()),
      async () => await this.expireAudit(),
      async () => await this.expireUsage(),
      async () => this.parts.onDiskUse(await disk.read()),
    ];
    for (const step of steps) if (!this.isStopping) await this.attempt(step);
  }

  private async expireAudit(): Promise<void> {
    const { db, config } = this.parts;
    if (config.auditDays === 0) return;
    const beforeMs = Date.now() - config.auditDays * 86_400_000;
    await db.deleteFrom('audit').where('time_ms', '<', beforeMs).execute();
  }

  private async expireUsage(): Promise<void> {
    const { db, config } = this.parts;
    if (config.usageDays === 0) return;
    const beforeMs = Date.now() - config.usageDays * 86_400_000;
    await db.deleteFrom('attempts').where('end_time_ms', '<', beforeMs).execute();
  }

  /** Deletes ended jobs that the settings do not keep; they can be undeleted like any other. */
  private async expireJobs(): Promise<void> {
    const { db, config, jobs, disk, log } = this.parts;
    const rule = ruleOf(config, 'job');
    if (isEmpty(rule)) return;
    const rows = await db
      .selectFrom('jobs')
      .select(['id', 'end_time_ms'])
      .where('state', 'in', terminalStates)
      .where('delete_time_ms', 'is', null)
      .where('end_time_ms', 'is not', null)
      .execute();
    const ended = await this.withBytes(rows, rule, (row) => ({
      id: row.id,
      timeMs: row.end_time_ms!,
      bytes: async () => await disk.freedBytes('jobs', row.id),
    }));
    for (const { id } of surplusOf(ended, rule, Date.now())) {
      const { outcome } = await jobs.delete(id);
      if (outcome === 'done') log.info({ jobId: id }, 'An ended job was deleted by the retention settings');
    }
  }

  private async expireCheckpoints(): Promise<void> {
    const { db, config, checkpoints, onPurged } = this.parts;
    const rule = ruleOf(config, 'checkpoint');
    if (isEmpty(rule)) return;
    const rows = await db
      .selectFrom('jobs')
      .select('id')
      .where('state', 'in', terminalStates)
      .where('delete_time_ms', 'is', null)
      .execute();
    for (const { id } of rows) {
      // Newest first, without corrupt ones.
      const items = (await checkpoints.list(id)).map((checkpoint) => ({
        checkpoint,
        timeMs: checkpoint.createTimeMs,
        bytes: checkpoint.sizeBytes,
      }));
      const surplus = surplusOf(items, rule, Date.now(), 1).map(({ checkpoint }) => checkpoint);
      for (const _ of await checkpoints.remove(id, surplus)) onPurged('checkpoint');
    }
  }

  /** Removes abandoned uploads and failed data sets: all that was acknowledged about them is that bytes arrived. */
  private async expireUploads(): Promise<void> {
    const { db, config, datasets, weights, isUploading, onPurged, log } = this.parts;
    const rule = ruleOf(config, 'upload');
    if (isEmpty(rule)) return;
    const found: (Keepable & { name: string; remove(): Promise<unknown> })[] = [];
    const add = async (name: string, updateTimeMs: number, remove: () => Promise<unknown>): Promise<void> => {
      if (isUploading(name)) return;
      const { timeMs, bytes } = await newestFile(join(config.dataFolder, name));
      found.push({ name, timeMs: Math.max(updateTimeMs, timeMs), bytes, remove });
    };
    const sets = await db
      .selectFrom('datasets')
      .select(['id', 'update_time_ms'])
      .where('state', 'in', ['uploading', 'failed'])
      .where('delete_time_ms', 'is', null)
      .execute();
    for (const { id, update_time_ms } of sets)
      await add(`datasets/${id}`, update_time_ms, async () => await datasets.delete(id));
    const models = await db
      .selectFrom('weights')
      .select(['id', 'update_time_ms'])
      .where('state', '=', 'uploading')
      .execute();
    for (const { id, update_time_ms } of models)
      await add(`weights/${id}`, update_time_ms, async () => await weights.remove(id));
    for (const { name, remove } of surplusOf(found, rule, Date.now())) {
      if (isUploading(name)) continue; // resumed while the others were checked
      await remove();
      onPurged('upload');
      log.info({ name }, 'An abandoned upload was deleted by the retention settings');
    }
  }

  /** Removes blobs of servers that lost a lease, or ended, before they could name them. */
  private async removeStrays(): Promise<void> {
    const { db, config, blobs, log } = this.parts;
    if (config.storeUrl === null || performance.now() - this.straysTimeMs < straysMs) return;
    this.straysTimeMs = performance.now();
    const count = await removeStrays(db, blobs);
    if (count > 0) log.info({ count }, 'Blobs that nothing names were thrown away');
  }

  private async purgeJobs(): Promise<void> {
    const { jobs, onPurged, log } = this.parts;
    for (const id of await jobs.toPurge(Date.now())) {
      await jobs.purge(id);
      onPurged('job');
      log.info({ jobId: id }, 'A deleted job is gone');
    }
  }

  private async purgeDatasets(): Promise<void> {
    const { config, datasets, stage, onPurged, log } = this.parts;
    for (const id of await datasets.toPurge(Date.now())) {
      if (await datasets.isNeeded(id)) {
        await rm(folders.uploads(config.dataFolder, id), { recursive: true, force: true });
        const prepared = folders.prepared(config.dataFolder, id);
        for (const name of await readdir(prepared).catch(() => []))
          if (!tokenizerFiles.has(name)) await rm(join(prepared, name), { recursive: true, force: true });
        await datasets.purgedButTokenizer(id, async (trx) => {
          await stage.forget(trx, `datasets/${id}/uploads`);
          await stage.forget(trx, `datasets/${id}/prepared`, tokenizerFiles);
        });
      } else await datasets.purge(id);
      onPurged('dataset');
      log.info({ datasetId: id }, 'A deleted data set is gone');
    }
  }

  /** Sizes are determined only if a rule needs them. */
  private async withBytes<Row, Item extends { id: string; timeMs: number; bytes: () => Promise<number> }>(
    rows: readonly Row[],
    rule: RetentionRule,
    itemOf: (row: Row) => Item,
  ): Promise<(Keepable & { id: string })[]> {
    const items: (Keepable & { id: string })[] = [];
    for (const row of rows) {
      const { id, timeMs, bytes } = itemOf(row);
      items.push({ id, timeMs, bytes: rule.bytes > 0 ? await bytes() : 0 });
    }
    return items;
  }

  private async attempt(step: () => Promise<void>): Promise<void> {
    try {
      await step();
    } catch (error) {
      this.parts.log.error({ err: error }, 'Cleaning up failed; it is tried again');
      if (isStoreBroken(error)) this.parts.onStoreFailure(error);
    }
  }
}

function ruleOf(config: Config, name: 'job' | 'checkpoint' | 'upload'): RetentionRule {
  return {
    days: config[`${name}RetentionDays`],
    count: config[`${name}RetentionCount`],
    bytes: config[`${name}RetentionBytes`],
  };
}

function isEmpty({ days, count, bytes }: RetentionRule): boolean {
  return days === 0 && count === 0 && bytes === 0;
}

/** When a file below a folder was last written, and the total size. */
async function newestFile(folder: string): Promise<{ timeMs: number; bytes: number }> {
  let timeMs = 0;
  let bytes = 0;
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  for (const entry of entries) {
    const stats = entry.isFile() && (await stat(join(entry.parentPath, entry.name)).catch(() => undefined));
    if (!stats) continue;
    timeMs = Math.max(timeMs, stats.mtimeMs);
    bytes += stats.size;
  }
  return { timeMs, bytes };
}
