import type { Job } from '../jobs/job.js';
import type { AttemptKey, JobAttempts } from '../jobs/jobAttempts.js';
import { toJob } from '../jobs/jobRow.js';
import { kindOf, type SealedArtifact } from './artifact.js';

/** Stores a sealed artifact, whose folder is complete and synced. Sealing it twice changes nothing. */
export async function sealArtifact(
  attempts: JobAttempts,
  key: AttemptKey,
  artifact: SealedArtifact,
): Promise<Job | 'stale'> {
  return await attempts.write(key, async (row, change) => {
    const known = await change.trx
      .selectFrom('artifacts')
      .select('id')
      .where('job_id', '=', row.id)
      .where('id', '=', artifact.id)
      .executeTakeFirst();
    if (known !== undefined) return row;
    const sizeBytes = artifact.files.reduce((sum, file) => sum + file.sizeBytes, 0);
    await change.trx
      .insertInto('artifacts')
      .values({
        job_id: row.id,
        id: artifact.id,
        kind: kindOf(artifact.format),
        step: artifact.step,
        size_bytes: sizeBytes,
        create_time_ms: change.nowMs,
        state: 'ready',
        format: artifact.format,
        weight_type: artifact.weightType,
        cast_error_max: artifact.castErrorMax,
        cycle: artifact.cycle,
        failure: null,
        shard_bytes_max: toJob(row).spec.export.shardBytesMax,
        checkpoint_folder: null,
        request_id: null,
        request_digest: null,
      })
      .execute();
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
