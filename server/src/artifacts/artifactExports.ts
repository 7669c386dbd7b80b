import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExportFormat, GgufType } from '@relora/engine/plan';
import type { JobFailure, JobProgress } from '../jobs/job.js';
import { jobAtWeights } from '../jobs/jobAtWeights.js';
import type { BlobStore } from '../store/blobStore.js';
import type { ChangeFeed } from '../store/changeFeed.js';
import { notePurge } from '../store/chunkDigests.js';
import type { Database } from '../store/database.js';
import { folders } from '../store/folders.js';
import type { Leases } from '../store/leases.js';
import type { ArtifactRow } from '../store/schema.js';
import type { Naming, Stage } from '../store/stage.js';
import { doPurges } from '../store/purges.js';
import { expireRequests, releaseRequest, takeRequest } from '../store/requests.js';
import { Quotas } from '../quotas/quotas.js';
import { tenantOf } from '../store/tenantIds.js';
import { timedId } from '../store/timedId.js';
import { kindOf, type ExportResult } from './artifact.js';

/** An export that a client asks for. */
export interface NewExport {
  jobId: string;
  format: ExportFormat;
  weightType: GgufType;
  shardBytesMax: number;
  /** `best`: the one with the lowest held-out loss. Null: the newest, or a new one that the running job saves for it. */
  checkpointStep: number | 'best' | null;
  /** The job has a trainer: it saves a checkpoint of its current step, unless a step was named. */
  isRunning: boolean;
  requestId: string | null;
  requestDigest: string;
}

/** `noCheckpoint`: none, or none at that step. `conflict`: the request id was used for another request. */
export type ExportSubmission = { artifactId: string } | 'noCheckpoint' | 'conflict';

/** An export that is still to be made. */
export interface PendingExport {
  row: ArtifactRow;
  /** Null until the running job has saved it. */
  checkpoint: { folder: string; manifestSha256: string } | null;
}

/** Rows of artifacts that are made on request: pending, then ready or failed. The checkpoint of a pending one is kept. */
export class ArtifactExports {
  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
    private readonly feed: ChangeFeed,
    private readonly leases: Leases,
    private readonly blobs: BlobStore,
    private readonly stage: Stage,
    private readonly quotas = new Quotas(),
  ) {}

  /** Stores a pending artifact; when this resolves, it survives any crash, and so does its checkpoint. */
  async submit(wanted: NewExport): Promise<ExportSubmission> {
    const nowMs = Date.now();
    const { jobId, checkpointStep, requestId } = wanted;
    const id = timedId('export', nowMs);
    const tenant = tenantOf(jobId);
    const submission = await this.db.transaction().execute(async (trx): Promise<ExportSubmission> => {
      await this.quotas.takeTurn(trx, tenant);
      // A deletion of checkpoints locks this row, too: so the checkpoint is either claimed before that, or already gone.
      const job = await trx
        .selectFrom('jobs')
        .select(['delete_time_ms', 'progress'])
        .where('id', '=', jobId)
        .forUpdate()
        .executeTakeFirst();
      if (job === undefined || job.delete_time_ms !== null) return 'noCheckpoint'; // deleted while it was checked
      if (requestId !== null) {
        const subject = `jobs/${jobId}/artifacts/${id}`;
        const request = { requestId, digest: wanted.requestDigest, subject };
        const first = await takeRequest(trx, request, nowMs);
        if (first === 'conflict') return first;
        if (first !== 'new') return { artifactId: first.subject.slice(`jobs/${jobId}/artifacts/`.length) };
      }
      let query = trx
        .selectFrom('checkpoints')
        .select(['folder', 'step'])
        .where('job_id', '=', jobId)
        .where('corrupt', '=', 0);
      const { best } = JSON.parse(job.progress) as JobProgress;
      const step = checkpointStep === 'best' ? (best?.step ?? -1) : checkpointStep; // no checkpoint has the step -1
      if (step !== null) query = query.where('step', '=', step);
      const isSaved = checkpointStep === null && wanted.isRunning;
      const checkpoint = isSaved
        ? undefined
        : await query.orderBy('step', 'desc').orderBy('attempt', 'desc').limit(1).executeTakeFirst();
      if (checkpoint === undefined && !isSaved) {
        if (requestId !== null)
          await releaseRequest(trx, { requestId, subject: `jobs/${jobId}/artifacts/${id}` });
        return 'noCheckpoint';
      }
      await this.quotas.requireBytes(trx, tenant, 0);
      await trx
        .insertInto('artifacts')
        .values({
          job_id: jobId,
          id,
          kind: kindOf(wanted.format),
          step: checkpoint?.step ?? 0,
          size_bytes: 0,
          create_time_ms: nowMs,
          state: 'pending',
          format: wanted.format,
          weight_type: wanted.weightType,
          cast_error_max: 0,
          cycle: null,
          failure: null,
          shard_bytes_max: wanted.shardBytesMax,
          checkpoint_folder: checkpoint?.folder ?? null,
        })
        .execute();
      return { artifactId: id };
    });
    if (typeof submission !== 'string') this.feed.announce({ topic: 'artifact', id: submission.artifactId });
    return submission;
  }

  /**
   * Takes the oldest pending export that nobody works on. If it needs a checkpoint of a job that is starting, it waits: there is no trainer
   * yet that could save one. If the job is running, only the server of that job takes it.
   */
  async next(): Promise<PendingExport | undefined> {
    const row = await this.db
      .updateTable('artifacts')
      .set((eb) => ({ ...this.leases.grant(), epoch: eb('epoch', '+', 1) }))
      .where('state', '=', 'pending')
      .where('id', '=', (query) =>
        query
          .selectFrom('artifacts')
          .select('id')
          .where('state', '=', 'pending')
          .where(this.leases.isFree)
          .where(({ eb, or, not, exists }) =>
            or([
              eb('checkpoint_folder', 'is not', null),
              not(
                exists(
                  query
                    .selectFrom('jobs')
                    .select('jobs.id')
                    .whereRef('jobs.id', '=', 'artifacts.job_id')
                    .where(({ eb: of, or: any, and: all }) =>
                      any([
                        of('jobs.state', '=', 'starting'),
                        all([
                          of('jobs.state', '=', 'running'),
                          of('jobs.lease_server', '!=', this.leases.serverId),
                        ]),
                      ]),
                    ),
                ),
              ),
            ]),
          )
          .orderBy('create_time_ms')
          .orderBy('id')
          .limit(1)
          .forUpdate()
          .skipLocked(),
      )
      .returningAll()
      .executeTakeFirst();
    if (row === undefined) return undefined;
    return { row, checkpoint: await this.checkpointOf(row) };
  }

  /** Assigns the newest checkpoint of its job to an export; false if there is none. */
  async takeNewest({ job_id: jobId, id, epoch }: ArtifactRow): Promise<boolean> {
    return await this.db.transaction().execute(async (trx) => {
      await trx.selectFrom('jobs').select('id').where('id', '=', jobId).forUpdate().execute();
      const newest = await trx
        .selectFrom('checkpoints')
        .select(['folder', 'step'])
        .where('job_id', '=', jobId)
        .where('corrupt', '=', 0)
        .orderBy('step', 'desc')
        .orderBy('attempt', 'desc')
        .limit(1)
        .executeTakeFirst();
      if (newest === undefined) return false;
      await trx
        .updateTable('artifacts')
        .set({ checkpoint_folder: newest.folder, step: newest.step })
        .where('job_id', '=', jobId)
        .where('id', '=', id)
        .where('epoch', '=', epoch)
        .execute();
      return true;
    });
  }

  /**
   * Marks an export as ready: its folder is complete and synced under its final name. False if the artifact was deleted meanwhile, or
   * another server makes it.
   */
  async ready(
    { job_id, id, epoch }: ArtifactRow,
    { files, castErrorMax, difference, cycle }: ExportResult,
    name: Naming = async () => {},
  ): Promise<boolean> {
    return await this.db.transaction().execute(async (trx) => {
      const { numUpdatedRows } = await trx
        .updateTable('artifacts')
        .set({
          state: 'ready',
          size_bytes: files.reduce((sum, file) => sum + file.sizeBytes, 0),
          cast_error_max: castErrorMax,
          difference: difference === undefined ? null : JSON.stringify(difference),
          cycle,
        })
        .where('job_id', '=', job_id)
        .where('id', '=', id)
        .where('epoch', '=', epoch)
        .where('state', '=', 'pending')
        .executeTakeFirst();
      if (numUpdatedRows === 0n) return false;
      await name(trx);
      const rows = files.map((file) => ({
        job_id,
        artifact_id: id,
        file_name: file.fileName,
        size_bytes: file.sizeBytes,
        sha256: file.sha256,
      }));
      await trx.insertInto('artifact_files').values(rows).execute();
      return true;
    });
  }

  async failed({ job_id, id, epoch }: ArtifactRow, failure: JobFailure): Promise<void> {
    await this.db
      .updateTable('artifacts')
      .set({ state: 'failed', failure: JSON.stringify(failure) })
      .where('job_id', '=', job_id)
      .where('id', '=', id)
      .where('epoch', '=', epoch)
      .where('state', '=', 'pending')
      .execute();
  }

  /** Deletes an artifact of any kind, first its row, then its files: a crash in between leaves files without a row. */
  async delete(jobId: string, id: string): Promise<{ usedBy: string } | 'removed' | 'notFound'> {
    const outcome = await this.db.transaction().execute(async (trx) => {
      // Submitting a job that begins at it locks this row, too.
      await trx.selectFrom('jobs').select('id').where('id', '=', jobId).forUpdate().execute();
      const job = await jobAtWeights(trx, `jobs/${jobId}/artifacts/${id}`);
      if (job !== undefined) return { usedBy: job };
      const { numDeletedRows } = await trx
        .deleteFrom('artifacts')
        .where('job_id', '=', jobId)
        .where('id', '=', id)
        .executeTakeFirst();
      if (numDeletedRows === 0n) return 'notFound' as const;
      await this.stage.forget(trx, `jobs/${jobId}/artifacts/${id}`);
      await notePurge(trx, `jobs/${jobId}/artifacts/${id}`);
      await expireRequests(trx, `jobs/${jobId}/artifacts/${id}`, Date.now());
      return 'removed' as const;
    });
    if (outcome !== 'removed') return outcome;
    this.feed.announce({ topic: 'artifact', id });
    await doPurges(this.db, this.blobs);
    await rm(join(folders.artifacts(this.dataFolder, jobId), id), { recursive: true, force: true });
    return outcome;
  }

  /** Lets other servers take it. */
  async release({ job_id, id, epoch }: ArtifactRow): Promise<void> {
    await this.db
      .updateTable('artifacts')
      .set({ lease_server: null, lease_until_ms: null })
      .where('job_id', '=', job_id)
      .where('id', '=', id)
      .where('epoch', '=', epoch)
      .execute();
  }

  /** Whether an export is still wanted, and assigned to this server. */
  async isPending({ job_id, id, epoch }: ArtifactRow): Promise<boolean> {
    const row = await this.db
      .selectFrom('artifacts')
      .select('id')
      .where('job_id', '=', job_id)
      .where('id', '=', id)
      .where('epoch', '=', epoch)
      .where('state', '=', 'pending')
      .executeTakeFirst();
    return row !== undefined;
  }

  private async checkpointOf(row: ArtifactRow): Promise<PendingExport['checkpoint']> {
    if (row.checkpoint_folder === null) return null;
    const { manifest_sha256: manifestSha256 } = await this.db
      .selectFrom('checkpoints')
      .select('manifest_sha256')
      .where('job_id', '=', row.job_id)
      .where('folder', '=', row.checkpoint_folder)
      .executeTakeFirstOrThrow();
    const folder = join(folders.checkpoints(this.dataFolder, row.job_id), row.checkpoint_folder);
    return { folder, manifestSha256 };
  }
}
