import type { Job, JobFailure } from '../jobs/job.js';
import type { AttemptKey, JobAttempts } from '../jobs/jobAttempts.js';
import type { JobChange } from '../jobs/jobChange.js';
import type { ServerWarning } from '../jobs/jobFailures.js';
import { toJob } from '../jobs/jobRow.js';
import type { Naming } from '../store/stage.js';
import type { JobRow } from '../store/schema.js';
import { kindOf, type ExportResult, type PlannedArtifact, type SealedArtifact } from './artifact.js';
import { nameOf } from '../store/tenantIds.js';

/** Stores a sealed artifact whose folder is complete and synced. Sealing it twice changes nothing. */
export async function sealArtifact(
  attempts: JobAttempts,
  key: AttemptKey,
  artifact: SealedArtifact,
  name: Naming = async () => {},
): Promise<Job | 'stale'> {
  return await attempts.write(key, async (row, change) => {
    const sizeBytes = artifact.files.reduce((sum, file) => sum + file.sizeBytes, 0);
    const { castErrorMax, difference } = artifact;
    if (!(await insert(row, change, artifact, { sizeBytes, castErrorMax, difference, failure: null })))
      return row;
    await name(change.trx);
    await change.trx
      .insertInto('artifact_files')
      .values(
        artifact.files.map((file) => ({
          job_id: row.id,
          artifact_id: artifact.id,
          file_name: file.fileName,
          size_bytes: file.sizeBytes,
          sha256: file.sha256,
        })),
      )
      .execute();
    return await change.append(row, row.attempt, [
      { timeMs: change.nowMs, body: { kind: 'artifact', artifactId: artifact.id, sizeBytes } },
    ]);
  });
}

/** Stores that a format could not be exported: the artifact says why, and the job itself is not affected. */
export async function storeFailedExport(
  attempts: JobAttempts,
  key: AttemptKey,
  artifact: PlannedArtifact,
  failure: JobFailure,
): Promise<Job | 'stale'> {
  return await attempts.write(key, async (row, change) => await failExport(row, change, artifact, failure));
}

/** The same within a change of the job. */
export async function failExport(
  row: JobRow,
  change: JobChange,
  artifact: PlannedArtifact,
  failure: JobFailure,
): Promise<JobRow> {
  if (!(await insert(row, change, artifact, { sizeBytes: 0, castErrorMax: 0, failure }))) return row;
  const reason: ServerWarning = 'EXPORT_FAILED';
  const message = `The export jobs/${nameOf(row.id)}/artifacts/${artifact.id} failed (${failure.reason}): ${failure.message}`;
  return await change.append(row, row.attempt, [
    { timeMs: change.nowMs, body: { kind: 'warning', reason, message } },
  ]);
}

/** False if it already exists: a repeated message changes nothing. */
async function insert(
  row: JobRow,
  { trx, nowMs }: JobChange,
  { id, format, step, weightType, cycle }: PlannedArtifact,
  result: {
    sizeBytes: number;
    castErrorMax: number;
    difference?: ExportResult['difference'];
    failure: JobFailure | null;
  },
): Promise<boolean> {
  const known = await trx
    .selectFrom('artifacts')
    .select('id')
    .where('job_id', '=', row.id)
    .where('id', '=', id)
    .executeTakeFirst();
  if (known !== undefined) return false;
  await trx
    .insertInto('artifacts')
    .values({
      job_id: row.id,
      id,
      kind: kindOf(format),
      step,
      size_bytes: result.sizeBytes,
      create_time_ms: nowMs,
      state: result.failure === null ? 'ready' : 'failed',
      format,
      weight_type: weightType,
      cast_error_max: result.castErrorMax,
      difference: result.difference === undefined ? null : JSON.stringify(result.difference),
      cycle,
      failure: result.failure === null ? null : JSON.stringify(result.failure),
      shard_bytes_max: toJob(row).spec.export.shardBytesMax,
      checkpoint_folder: null,
    })
    .execute();
  return true;
}
