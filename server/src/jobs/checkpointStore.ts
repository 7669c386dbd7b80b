import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database } from '../store/database.js';
import { namesIn } from '../store/diskFiles.js';
import { folders, removeUnfinished } from '../store/folders.js';
import type { CheckpointRow } from '../store/schema.js';
import type { Stage } from '../store/stage.js';
import { terminalStates, type JobOrigin, type JobProgress } from './job.js';

/** An acknowledged checkpoint: complete and synced in its folder before its row was stored. */
export interface Checkpoint {
  jobId: string;
  attempt: number;
  /** The step that a run resumes at. */
  step: number;
  /** Absolute path. */
  folder: string;
  sizeBytes: number;
  manifestSha256: string;
  createTimeMs: number;
}

/** Rows of checkpoints and their folders. The rows decide: a folder without a row does not count. */
export class CheckpointStore {
  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
    private readonly stage: Stage,
  ) {}

  /** Checkpoints of a job that were not found to be corrupt, newest first. */
  async list(jobId: string): Promise<Checkpoint[]> {
    const rows = await this.db
      .selectFrom('checkpoints')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('corrupt', '=', 0)
      .orderBy('step', 'desc')
      .orderBy('attempt', 'desc')
      .execute();
    return rows.map((row) => this.toCheckpoint(row));
  }

  async newest(jobId: string): Promise<Checkpoint | undefined> {
    return (await this.list(jobId))[0];
  }

  /** Deletes all checkpoints except the newest `keepCount`, see `remove`. Keeps at least two, in case the newest cannot be read. */
  async prune(jobId: string, keepCount: number): Promise<void> {
    const surplus = (await this.list(jobId)).slice(Math.max(2, keepCount));
    await this.remove(jobId, surplus);
  }

  /**
   * Deletes the `surplus` checkpoints of a job, except the one with the lowest held-out loss and those in use by a pending export or by an
   * unfinished job that begins at one. The rows go first: a crash in between leaves folders without a row, which clearOrphans removes, but
   * never a row without its folder. What still reads a folder that it took can read it to the end. Returns the deleted ones.
   */
  async remove(jobId: string, surplus: readonly Checkpoint[]): Promise<Checkpoint[]> {
    if (surplus.length === 0) return [];
    const parent = folders.checkpoints(this.dataFolder, jobId);
    const names = surplus.map(({ folder }) => folder.slice(parent.length + 1));
    const deleted = await this.db.transaction().execute(async (trx) => {
      // An export, or a job that begins at a checkpoint, claims it under this lock: either before the deletion or not at all.
      const { progress } = await trx
        .selectFrom('jobs')
        .select('progress')
        .where('id', '=', jobId)
        .forUpdate()
        .executeTakeFirstOrThrow();
      const { best } = JSON.parse(progress) as JobProgress;
      const forks = await trx
        .selectFrom('jobs')
        .select('origin')
        .where('origin_job_id', '=', jobId)
        .where('state', 'not in', terminalStates)
        .execute();
      const begun = new Set(forks.map(({ origin }) => (JSON.parse(origin!) as JobOrigin).folder));
      const kept = new Set(surplus.filter(({ step }) => step === best?.step).map(({ folder }) => folder));
      const free = names.filter((name) => !begun.has(name) && !kept.has(join(parent, name)));
      if (free.length === 0) return [];
      const gone = await trx
        .deleteFrom('checkpoints')
        .where('job_id', '=', jobId)
        .where('folder', 'in', free)
        .where('folder', 'not in', (query) =>
          query
            .selectFrom('artifacts')
            .select((eb) => eb.ref('checkpoint_folder').$notNull().as('folder'))
            .where('job_id', '=', jobId)
            .where('state', '=', 'pending')
            .where('checkpoint_folder', 'is not', null),
        )
        .returning('folder')
        .execute();
      for (const { folder } of gone) await this.stage.forget(trx, `jobs/${jobId}/checkpoints/${folder}`);
      return gone;
    });
    for (const { folder } of deleted) await this.stage.discard(`jobs/${jobId}/checkpoints/${folder}`);
    const gone = new Set(deleted.map(({ folder }) => join(parent, folder)));
    return surplus.filter(({ folder }) => gone.has(folder));
  }

  /**
   * Removes folders without a row: temporary ones of a dead trainer, and checkpoints that were complete but not yet acknowledged. Call it
   * only for a job without a trainer. Corrupt checkpoints are kept for investigation.
   */
  async clearOrphans(jobId: string): Promise<string[]> {
    const parent = folders.checkpoints(this.dataFolder, jobId);
    const rows = await this.db
      .selectFrom('checkpoints')
      .select('folder')
      .where('job_id', '=', jobId)
      .execute();
    const known = new Set(rows.map(({ folder }) => folder));
    const removed = (await namesIn(parent)).filter((name) => !known.has(name));
    for (const name of removed) await this.stage.discard(`jobs/${jobId}/checkpoints/${name}`);
    // The weights at the start of the adapter phase have no row, but checkpoints link to them: only unfinished ones are removed.
    return [
      ...removed.map((name) => join(parent, name)),
      ...(await removeUnfinished(folders.start(this.dataFolder, jobId))),
    ];
  }

  private toCheckpoint(row: CheckpointRow): Checkpoint {
    return {
      jobId: row.job_id,
      attempt: row.attempt,
      step: row.step,
      folder: join(folders.checkpoints(this.dataFolder, row.job_id), row.folder),
      sizeBytes: row.size_bytes,
      manifestSha256: row.manifest_sha256,
      createTimeMs: row.create_time_ms,
    };
  }
}

/** SHA-256 of the files of a checkpoint from its manifest, which saves reading the files again; empty if it has no manifest. */
export async function checkpointDigests(folder: string): Promise<Map<string, string>> {
  const text = await readFile(join(folder, 'manifest.json'), 'utf8').catch(() => '{}');
  const { files = {} } = JSON.parse(text) as { files?: Record<string, { fileName: string; sha256: string }> };
  return new Map(Object.values(files).map(({ fileName, sha256 }) => [fileName, sha256]));
}
