import type { ExportFormat } from '@relora/engine/plan';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database } from '../store/database.js';
import { folders, removeOthers } from '../store/folders.js';
import type { ArtifactRow } from '../store/schema.js';
import { isOutOfFiles } from '../store/storeError.js';
import type { JobFailure } from '../jobs/job.js';
import type { Artifact, ArtifactFile } from './artifact.js';

/** One file of an artifact, open for reading. Removing the artifact does not harm a download that has begun. */
export interface OpenArtifactFile {
  file: ArtifactFile;
  /** Bytes from the offset on in pieces of at most pieceBytes, each freshly allocated. Throws ArtifactDamaged when the file ends early. */
  read(offset: number, pieceBytes: number): AsyncGenerator<Uint8Array>;
  close(): Promise<void>;
}

/** The bytes on disk are not those that were sealed. */
export class ArtifactDamaged extends Error {
  override name = 'ArtifactDamaged';
}

/** Artifacts of jobs: rows and the folders they name. */
export class ArtifactStore {
  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
  ) {}

  async find(jobId: string, artifactId: string): Promise<Artifact | undefined> {
    const row = await this.db
      .selectFrom('artifacts')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('id', '=', artifactId)
      .executeTakeFirst();
    return row === undefined ? undefined : await this.withFiles(row);
  }

  /** One page, oldest first; `next` is the id to pass as afterId, null at the end. */
  async list(
    jobId: string,
    page: { afterId: string | null; artifactsMax: number },
  ): Promise<{ artifacts: Artifact[]; next: string | null }> {
    const after = page.afterId === null ? undefined : await this.find(jobId, page.afterId);
    let query = this.db
      .selectFrom('artifacts')
      .selectAll()
      .where('job_id', '=', jobId)
      .orderBy('create_time_ms')
      .orderBy('id')
      .limit(page.artifactsMax + 1);
    if (after !== undefined) {
      query = query.where(({ eb, refTuple, tuple }) =>
        eb(refTuple('create_time_ms', 'id'), '>', tuple(after.createTimeMs, after.id)),
      );
    }
    const rows = await query.execute();
    const artifacts: Artifact[] = [];
    for (const row of rows.slice(0, page.artifactsMax)) artifacts.push(await this.withFiles(row));
    return { artifacts, next: rows.length > page.artifactsMax ? (artifacts.at(-1)?.id ?? null) : null };
  }

  /** The newest model that can write text. */
  async newest(jobId: string): Promise<Artifact | undefined> {
    const row = await this.db
      .selectFrom('artifacts')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('state', '=', 'ready')
      .where('format', '=', 'huggingFace')
      .orderBy('step', 'desc')
      .orderBy('create_time_ms', 'desc')
      .limit(1)
      .executeTakeFirst();
    return row === undefined ? undefined : await this.withFiles(row);
  }

  /**
   * `notFound`: the artifact has no such file. `dataLoss`: it is missing, of another length, a link, or not a regular file.
   * Equal length is not equal content: the reader compares the SHA-256. The caller closes it.
   */
  async openFile(artifact: Artifact, fileName: string): Promise<OpenArtifactFile | 'notFound' | 'dataLoss'> {
    const file = artifact.files.find((entry) => entry.fileName === fileName);
    if (file === undefined) return 'notFound';
    const path = join(artifact.folder, file.fileName);
    const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
      (error: unknown) => {
        if (isOutOfFiles(error)) throw error;
        return undefined;
      },
    );
    if (handle === undefined) return 'dataLoss';
    const stat = await handle.stat();
    if (!stat.isFile() || stat.size !== file.sizeBytes) {
      await handle.close();
      return 'dataLoss';
    }
    return {
      file,
      async *read(offset, pieceBytes) {
        for (let position = offset; position < file.sizeBytes;) {
          const piece = Buffer.allocUnsafeSlow(Math.min(pieceBytes, file.sizeBytes - position));
          const { bytesRead } = await handle.read(piece, 0, piece.length, position);
          if (bytesRead === 0)
            throw new ArtifactDamaged(
              `${artifact.id}/${file.fileName} of job ${artifact.jobId} ended at byte ${position} of ${file.sizeBytes}`,
            );
          position += bytesRead;
          yield piece.subarray(0, bytesRead);
        }
      },
      close: async () => await handle.close(),
    };
  }

  /** Formats that the trainer has sealed at a step. */
  async formatsAt(jobId: string, step: number): Promise<ExportFormat[]> {
    const rows = await this.db
      .selectFrom('artifacts')
      .select('format')
      .where('job_id', '=', jobId)
      .where('step', '=', step)
      .where('state', '=', 'ready')
      .where('checkpoint_folder', 'is', null)
      .execute();
    return rows.map(({ format }) => format);
  }

  /** Removes what no row names: exports that were not finished or not acknowledged. Only for a job that has no trainer. */
  async clearOrphans(jobId: string): Promise<string[]> {
    const rows = await this.db.selectFrom('artifacts').select('id').where('job_id', '=', jobId).execute();
    return await removeOthers(folders.artifacts(this.dataFolder, jobId), new Set(rows.map(({ id }) => id)));
  }

  private async withFiles(row: ArtifactRow): Promise<Artifact> {
    const files = await this.db
      .selectFrom('artifact_files')
      .selectAll()
      .where('job_id', '=', row.job_id)
      .where('artifact_id', '=', row.id)
      .orderBy('file_name')
      .execute();
    return {
      jobId: row.job_id,
      id: row.id,
      kind: row.kind,
      state: row.state,
      format: row.format,
      weightType: row.weight_type,
      castErrorMax: row.cast_error_max,
      cycle: row.cycle,
      failure: row.failure === null ? null : (JSON.parse(row.failure) as JobFailure),
      step: row.step,
      files: files.map((file) => ({
        fileName: file.file_name,
        sizeBytes: file.size_bytes,
        sha256: file.sha256,
      })),
      sizeBytes: row.size_bytes,
      createTimeMs: row.create_time_ms,
      folder: join(folders.artifacts(this.dataFolder, row.job_id), row.id),
    };
  }
}
