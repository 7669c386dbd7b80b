import type { ExportDifference, ExportFormat } from '@relora/engine/plan';
import { join } from 'node:path';
import { chunkBytes, type OpenBlob } from '../store/blobStore.js';
import { ChunkDigests } from '../store/chunkDigests.js';
import type { Database } from '../store/database.js';
import { folders, removeOthers } from '../store/folders.js';
import type { ArtifactRow } from '../store/schema.js';
import type { Stage } from '../store/stage.js';
import type { JobFailure } from '../jobs/job.js';
import type { Artifact, ArtifactFile } from './artifact.js';
import { readChecked, readFirst } from './checkedRead.js';

/** One file of an artifact, open for reading. Removing the artifact does not interrupt a download that has begun. */
export interface OpenArtifactFile {
  file: ArtifactFile;
  /**
   * Bytes from the offset in pieces of at most pieceBytes, each freshly allocated. Throws ArtifactDamaged if the bytes are not those that
   * were sealed, before it returns the last of them.
   */
  read(offset: number, pieceBytes: number): AsyncGenerator<Uint8Array>;
  close(): Promise<void>;
}

/** Position in a list of artifacts: the last one of the previous page, which may be deleted meanwhile. */
export interface ArtifactCursor {
  createTimeMs: number;
  id: string;
}

/** Artifacts of jobs: rows, and the folders that they name. */
export class ArtifactStore {
  private readonly digests: ChunkDigests;

  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
    private readonly stage: Stage,
  ) {
    this.digests = new ChunkDigests(db);
  }

  async find(jobId: string, artifactId: string): Promise<Artifact | undefined> {
    const row = await this.db
      .selectFrom('artifacts')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('id', '=', artifactId)
      .executeTakeFirst();
    return row === undefined ? undefined : await this.withFiles(row);
  }

  /** One page, oldest first; `next` is null at the end. */
  async list(
    jobId: string,
    { after, artifactsMax }: { after: ArtifactCursor | null; artifactsMax: number },
  ): Promise<{ artifacts: Artifact[]; next: ArtifactCursor | null }> {
    let query = this.db
      .selectFrom('artifacts')
      .selectAll()
      .where('job_id', '=', jobId)
      .orderBy('create_time_ms')
      .orderBy('id')
      .limit(artifactsMax + 1);
    if (after !== null) {
      query = query.where(({ eb, refTuple, tuple }) =>
        eb(refTuple('create_time_ms', 'id'), '>', tuple(after.createTimeMs, after.id)),
      );
    }
    const rows = await query.execute();
    const artifacts: Artifact[] = [];
    for (const row of rows.slice(0, artifactsMax)) artifacts.push(await this.withFiles(row));
    const last = rows.length > artifactsMax ? artifacts.at(-1) : undefined;
    return { artifacts, next: last === undefined ? null : { createTimeMs: last.createTimeMs, id: last.id } };
  }

  /** The newest model that can generate text. */
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
   * `notFound`: the artifact has no such file. `dataLoss`: it is missing, a link, not a regular file, or of another length. The caller
   * closes it.
   */
  async openFile(artifact: Artifact, fileName: string): Promise<OpenArtifactFile | 'notFound' | 'dataLoss'> {
    const file = artifact.files.find((entry) => entry.fileName === fileName);
    if (file === undefined) return 'notFound';
    const blob = await this.stage.openFile(`jobs/${artifact.jobId}/artifacts/${artifact.id}`, fileName);
    if (blob?.sizeBytes !== file.sizeBytes) {
      await blob?.close();
      return 'dataLoss';
    }
    return {
      file,
      read: (offset, pieceBytes) => this.read(blob, file, offset, pieceBytes),
      close: async () => await blob.close(),
    };
  }

  private async *read(
    blob: OpenBlob,
    file: ArtifactFile,
    offset: number,
    pieceBytes: number,
  ): AsyncGenerator<Uint8Array> {
    const crcs = await this.digests.find(blob.name, chunkCountOf(file));
    if (crcs !== undefined) return yield* readChecked(blob, offset, pieceBytes, crcs);
    // From before there were checksums, or never read: its SHA-256 shows whether it is intact, and its checksums are stored.
    let made: number[] = [];
    const first = readFirst(blob, pieceBytes, file.sha256, async (found) => {
      made = found;
      await this.digests.write(blob.name, found);
    });
    if (offset === 0) return yield* first;
    for await (const _ of first);
    yield* readChecked(blob, offset, pieceBytes, made);
  }

  /** Formats that the trainer has made, or failed to make, at a step. */
  async formatsAt(jobId: string, step: number): Promise<ExportFormat[]> {
    const rows = await this.db
      .selectFrom('artifacts')
      .select('format')
      .where('job_id', '=', jobId)
      .where('step', '=', step)
      .where('state', 'in', ['ready', 'failed'])
      .where('checkpoint_folder', 'is', null)
      .execute();
    return rows.map(({ format }) => format);
  }

  /** Removes folders without a row: exports that were not finished or not acknowledged. Call it only for a job without a trainer. */
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
      difference: row.difference === null ? null : (JSON.parse(row.difference) as ExportDifference),
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

function chunkCountOf({ sizeBytes }: ArtifactFile): number {
  return Math.ceil(sizeBytes / chunkBytes);
}
