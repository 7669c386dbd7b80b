import { mkdir, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Logger } from 'pino';
import type { DatasetStore } from '../datasets/datasetStore.js';
import type { CheckpointStore } from '../jobs/checkpointStore.js';
import type { ServerFailure } from '../jobs/jobFailures.js';
import type { JobStore } from '../jobs/jobStore.js';
import { keepCountAfter } from '../jobs/jobUpdates.js';
import type { Change, ChangeFeed } from '../store/changeFeed.js';
import { folders, syncFolder } from '../store/folders.js';
import type { Leases } from '../store/leases.js';
import { giveThen, type Stage } from '../store/stage.js';
import type { ArtifactRow } from '../store/schema.js';
import { failureOf } from './taskFailure.js';
import type { TaskRunner } from './taskRunner.js';
import { WaitingWork } from './waitingWork.js';
import type { ArtifactExports, PendingExport } from '../artifacts/artifactExports.js';
import { idIn, nameOf, tenantOf } from '../store/tenantIds.js';

export interface ArtifactExporterParts {
  exports: ArtifactExports;
  store: JobStore;
  checkpoints: CheckpointStore;
  datasets: DatasetStore;
  tasks: TaskRunner;
  /** See Supervisor. */
  saveCheckpoint(jobId: string): Promise<string | null>;
  dataFolder: string;
  feed: ChangeFeed;
  leases: Leases;
  stage: Stage;
  log: Logger;
  /** The store failed: see Supervisor. */
  onStoreFailure(error: unknown): void;
}

/** Crashes of the child after which an export fails: a single one may be bad luck. */
const crashesMax = 2;

/**
 * Makes pending artifacts one after another in a child process, which fills a folder of its own; the folder is renamed, then the row
 * becomes ready. After a crash of the child or the server an export begins again, from the checkpoint that is kept for it.
 */
export class ArtifactExporter {
  private readonly work: WaitingWork;
  private stopListening: (() => void) | undefined;
  /** Jobs that were last heard of as running. */
  private readonly running = new Set<string>();
  /** The current export; aborted if somebody deletes it. */
  private present: { row: ArtifactRow; ended: AbortController } | undefined;

  constructor(private readonly parts: ArtifactExporterParts) {
    this.work = new WaitingWork({
      doNext: async () => await this.exportNext(),
      log: parts.log,
      name: 'Exports',
      onStoreFailure: (error) => parts.onStoreFailure(error),
    });
  }

  /** Begins with the pending exports; from now on new ones are taken as they come. */
  start(): void {
    this.stopListening = this.parts.feed.listen((change) => {
      if (change?.topic === 'job' ? !this.mayUnblock(change) : change !== null && change.topic !== 'artifact')
        return;
      this.work.wake();
      void this.endIfDeleted();
    });
    this.work.wake();
  }

  /** Stops the current export; it begins again at the next start. */
  async stop(): Promise<void> {
    this.stopListening?.();
    await this.work.stop();
  }

  private async exportNext(): Promise<boolean> {
    const { exports, leases } = this.parts;
    const next = await exports.next();
    if (next === undefined) return false;
    const { row } = next;
    this.present = { row, ended: new AbortController() };
    const { ended } = this.present;
    const release = leases.hold('artifacts', row.id, row.epoch, () => ended.abort());
    try {
      await this.export(next, AbortSignal.any([this.work.signal, ended.signal]));
    } finally {
      release();
      this.present = undefined;
      await exports.release(row).catch(() => {}); // if this fails, it is free once the lease has expired
    }
    return true;
  }

  private async export({ row, checkpoint }: PendingExport, signal: AbortSignal): Promise<void> {
    if (checkpoint === null) return await this.takeCheckpoint(row, signal);
    const { exports, store, stage, datasets, tasks, dataFolder, checkpoints } = this.parts;
    const taken = [stage.keep(`jobs/${row.job_id}`)];
    const log = this.parts.log.child({ jobId: row.job_id, artifactId: row.id });
    const { spec } = (await store.find(row.job_id))!; // a job's artifacts are deleted before the job
    const datasetId = idIn(tenantOf(row.job_id), spec.dataset.replace(/^datasets\//, ''));
    const folder = join(folders.artifacts(dataFolder, row.job_id), row.id);
    const temporaries = folders.exports(dataFolder, row.job_id);
    const temporary = join(temporaries, row.id);
    // Called before the row says how it ended: whoever reads that finds no unfinished files.
    const removeTemporaries = () =>
      rm(temporaries, { recursive: true, force: true }).catch((error: unknown) => {
        log.warn({ err: error }, 'Leftovers could not be removed');
      });
    for (let crashes = 0; ;) {
      try {
        taken.push(await stage.take(`jobs/${row.job_id}/checkpoints/${basename(checkpoint.folder)}`));
        taken.push(await stage.take(`datasets/${datasetId}/prepared`));
        // Removes what an earlier attempt left, including a folder that was renamed before its row was stored.
        await rm(temporaries, { recursive: true, force: true });
        await rm(folder, { recursive: true, force: true });
        await mkdir(temporaries, { recursive: true });
        await mkdir(join(folder, '..'), { recursive: true });
        const result = await tasks.exportWeights(
          {
            job: `jobs/${nameOf(row.job_id)}`,
            checkpoint: { path: checkpoint.folder, manifestSha256: checkpoint.manifestSha256 },
            datasetFolder: datasets.preparedFolder(datasetId),
            outputFolder: temporary,
            format: row.format,
            weightType: row.weight_type,
            shardBytesMax: row.shard_bytes_max,
            sequenceLength: spec.batch.sequenceLength,
          },
          { signal, log },
        );
        await rename(temporary, folder);
        await syncFolder(join(folder, '..'));
        await syncFolder(join(folder, '..', '..'));
        await removeTemporaries();
        const given = {
          folder: `jobs/${row.job_id}/artifacts/${row.id}`,
          maker: { kind: 'exports', fence: row.epoch } as const,
          digests: new Map(result.files.map(({ fileName, sha256 }) => [fileName, sha256])),
        };
        const isReady = await giveThen(
          stage,
          [given],
          async (name) => await exports.ready(row, result, name),
        );
        if (!isReady) await rm(folder, { recursive: true, force: true });
        log.info({ format: row.format }, 'Weights were exported');
        break;
      } catch (error) {
        await removeTemporaries();
        if (signal.aborted) break;
        const failure = failureOf(error, 'then export again');
        log.warn({ reason: failure.reason, err: error }, failure.message);
        if (failure.reason === 'TASK_CRASHED' && ++crashes < crashesMax) continue;
        await exports.failed(row, failure);
        break;
      }
    }
    for (const release of taken) release();
    // Without the checkpoint that this export needed, there may be one more than should be kept.
    const prune = async (): Promise<void> => {
      const updates = await store.updatesOf(row.job_id);
      await checkpoints.prune(row.job_id, updates.reduce(keepCountAfter, spec.checkpoint.keepCount));
    };
    await prune().catch((error: unknown) => {
      log.warn({ err: error }, 'Old checkpoints could not be removed');
    });
  }

  /** Has the running job save its current step; if the job has ended meanwhile, its newest checkpoint is taken. */
  private async takeCheckpoint(row: ArtifactRow, signal: AbortSignal): Promise<void> {
    const { exports, saveCheckpoint } = this.parts;
    const aborted = new Promise<'aborted'>((resolve) =>
      signal.addEventListener('abort', () => resolve('aborted'), { once: true }),
    );
    const problem = await Promise.race([saveCheckpoint(row.job_id), aborted]);
    if (signal.aborted) return;
    if (problem !== null) await exports.failed(row, { reason: 'CHECKPOINT_NO_SPACE', message: problem });
    else if (!(await exports.takeNewest(row))) {
      const reason: ServerFailure = 'CHECKPOINT_MISSING';
      await exports.failed(row, { reason, message: `jobs/${nameOf(row.job_id)} ended without a checkpoint` });
    }
  }

  /** Whether an export may have waited for this change: one of a starting job waits until the job runs, or no longer starts. */
  private mayUnblock({ id, state }: Extract<Change, { topic: 'job' }>): boolean {
    const wasRunning = this.running.delete(id);
    if (state !== 'running') return state !== 'starting';
    this.running.add(id);
    return !wasRunning; // it announces each of its steps
  }

  private async endIfDeleted(): Promise<void> {
    const { present } = this;
    if (present === undefined) return;
    // If the store cannot be read now, the next change checks again.
    const isPending = await this.parts.exports.isPending(present.row).catch(() => true);
    if (!isPending) present.ended.abort();
  }
}
