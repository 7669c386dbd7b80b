import type { DatasetManifest } from '@relora/engine/data';
import type { CheckpointManifest } from '@relora/engine';
import type { PreparedDataset } from '../datasets/dataset.js';
import type { Database } from '../store/database.js';
import { defaultTenant } from '../store/tenantIds.js';

/** A file whose digest was computed when it was complete. */
export interface SealedFile {
  fileName: string;
  /** Null if only the digest was stored. */
  sizeBytes: number | null;
  /** Hexadecimal. */
  sha256: string;
}

/** Files that were sealed together, in one folder. */
export interface Sealed {
  /** For people: the name that clients use, if there is one. */
  name: string;
  folder: string;
  /** Its files, or the manifest that names them. */
  content: { files: SealedFile[] } | { manifestSha256: string; filesOf(manifest: unknown): SealedFile[] };
  /** False once it has been deleted: missing files are then no damage. */
  isThere(): Promise<boolean>;
}

/**
 * What to check: one job with everything that is kept of it, one data set, one upload of weights, or everything of one kind that a tenant
 * has.
 */
export interface Subject {
  kind: 'jobs' | 'datasets' | 'weights';
  /** Default: `default`. */
  tenant?: string;
  id: string | null;
}

/** Rows per query. */
const pageRows = 100;

export async function* sealedOf(
  db: Database,
  { kind, tenant = defaultTenant, id }: Subject,
): AsyncGenerator<Sealed> {
  switch (kind) {
    case 'jobs':
      yield* artifacts(db, tenant, id);
      return yield* checkpoints(db, tenant, id);
    case 'datasets':
      return yield* datasets(db, tenant, id);
    case 'weights':
      return yield* weights(db, tenant, id);
  }
}

async function* artifacts(db: Database, tenant: string, jobId: string | null): AsyncGenerator<Sealed> {
  const read = (after: { job_id: string; id: string }) => {
    const query = db
      .selectFrom('artifacts')
      .select(['job_id', 'id'])
      .where('state', '=', 'ready')
      .where(({ eb, refTuple, tuple }) => eb(refTuple('job_id', 'id'), '>', tuple(after.job_id, after.id)))
      .orderBy('job_id')
      .orderBy('id')
      .limit(pageRows);
    return (
      jobId === null
        ? query.where('job_id', 'in', (of) => of.selectFrom('jobs').select('id').where('tenant', '=', tenant))
        : query.where('job_id', '=', jobId)
    ).execute();
  };
  for await (const { job_id, id } of allRows(read, { job_id: '', id: '' })) {
    const files = await db
      .selectFrom('artifact_files')
      .select(['file_name as fileName', 'size_bytes as sizeBytes', 'sha256'])
      .where('job_id', '=', job_id)
      .where('artifact_id', '=', id)
      .orderBy('file_name')
      .execute();
    yield {
      name: `jobs/${job_id}/artifacts/${id}`,
      folder: `jobs/${job_id}/artifacts/${id}`,
      content: { files },
      isThere: () =>
        exists(db.selectFrom('artifacts').select('id').where('job_id', '=', job_id).where('id', '=', id)),
    };
  }
}

/** Checkpoints that a job can resume from, without those already known to be corrupt. */
async function* checkpoints(db: Database, tenant: string, jobId: string | null): AsyncGenerator<Sealed> {
  const read = (after: { job_id: string; folder: string }) => {
    const query = db
      .selectFrom('checkpoints')
      .select(['job_id', 'folder', 'manifest_sha256'])
      .where('corrupt', '=', 0)
      .where(({ eb, refTuple, tuple }) =>
        eb(refTuple('job_id', 'folder'), '>', tuple(after.job_id, after.folder)),
      )
      .orderBy('job_id')
      .orderBy('folder')
      .limit(pageRows);
    return (
      jobId === null
        ? query.where('job_id', 'in', (of) => of.selectFrom('jobs').select('id').where('tenant', '=', tenant))
        : query.where('job_id', '=', jobId)
    ).execute();
  };
  for await (const { job_id, folder, manifest_sha256 } of allRows(read, { job_id: '', folder: '' })) {
    yield {
      name: `jobs/${job_id}/checkpoints/${folder}`,
      folder: `jobs/${job_id}/checkpoints/${folder}`,
      content: {
        manifestSha256: manifest_sha256,
        filesOf: (manifest) => Object.values((manifest as CheckpointManifest).files),
      },
      isThere: () =>
        exists(
          db
            .selectFrom('checkpoints')
            .select('folder')
            .where('job_id', '=', job_id)
            .where('folder', '=', folder)
            .where('corrupt', '=', 0),
        ),
    };
  }
}

async function* datasets(db: Database, tenant: string, datasetId: string | null): AsyncGenerator<Sealed> {
  const whole = () =>
    db
      .selectFrom('datasets')
      .select(['id', 'prepared'])
      .where('state', '=', 'ready')
      .where('prepared', 'is not', null)
      .where('purged', '=', 0);
  const read = (after: { id: string }) => {
    const query = whole().where('id', '>', after.id).orderBy('id').limit(pageRows);
    return (
      datasetId === null ? query.where('tenant', '=', tenant) : query.where('id', '=', datasetId)
    ).execute();
  };
  for await (const { id, prepared } of allRows(read, { id: '' })) {
    yield {
      name: `datasets/${id}`,
      folder: `datasets/${id}/prepared`,
      content: {
        manifestSha256: (JSON.parse(prepared!) as PreparedDataset).manifestSha256,
        filesOf: (manifest) => datasetFiles(manifest as DatasetManifest),
      },
      isThere: () => exists(whole().where('id', '=', id)),
    };
  }
}

function datasetFiles({ tokenizer, tokenBytes, train, heldOut }: DatasetManifest): SealedFile[] {
  const files: SealedFile[] = [{ fileName: 'tokenizer.json', sizeBytes: null, sha256: tokenizer.sha256 }];
  for (const { file, tokens, sha256, mask } of [...train.shards, ...heldOut.shards]) {
    files.push({ fileName: file, sizeBytes: tokens * tokenBytes, sha256 });
    if (mask !== undefined)
      files.push({ fileName: mask.file, sizeBytes: Math.ceil(tokens / 8), sha256: mask.sha256 });
  }
  return files;
}

async function* weights(db: Database, tenant: string, weightsId: string | null): AsyncGenerator<Sealed> {
  const read = (after: { id: string }) => {
    const query = db
      .selectFrom('weights')
      .select('id')
      .where('state', '=', 'ready')
      .where('id', '>', after.id)
      .orderBy('id')
      .limit(pageRows);
    return (
      weightsId === null ? query.where('tenant', '=', tenant) : query.where('id', '=', weightsId)
    ).execute();
  };
  for await (const { id } of allRows(read, { id: '' })) {
    const files = await db
      .selectFrom('weights_files')
      .select(['file_name as fileName', 'size_bytes as sizeBytes', 'sha256'])
      .where('weights_id', '=', id)
      .orderBy('file_index')
      .execute();
    yield {
      name: `weights/${id}`,
      folder: `weights/${id}`,
      content: { files },
      isThere: () => exists(db.selectFrom('weights').select('id').where('id', '=', id)),
    };
  }
}

/** Page by page: rows that are added or deleted meanwhile do not make others appear twice or not at all. */
async function* allRows<Row extends After, After>(
  read: (after: After) => Promise<Row[]>,
  first: After,
): AsyncGenerator<Row> {
  for (let after = first; ;) {
    const rows = await read(after);
    yield* rows;
    if (rows.length < pageRows) return;
    after = rows.at(-1)!;
  }
}

async function exists(query: { executeTakeFirst(): Promise<unknown> }): Promise<boolean> {
  return (await query.executeTakeFirst()) !== undefined;
}
