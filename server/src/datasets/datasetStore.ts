import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ChangeFeed } from '../store/changeFeed.js';
import type { Database } from '../store/database.js';
import { folders } from '../store/folders.js';
import type { Leases } from '../store/leases.js';
import type { DatasetFileRow, DatasetLabelRow, DatasetRow } from '../store/schema.js';
import type { Naming } from '../store/stage.js';
import { timedId } from '../store/timedId.js';
import type {
  Dataset,
  DatasetFile,
  DatasetHead,
  DatasetSpec,
  DatasetSummary,
  PreparedDataset,
  StoredDatasetSpec,
} from './dataset.js';
import { Quotas } from '../quotas/quotas.js';
import type { UploadParts } from '../uploads/uploadParts.js';
import { defaultTenant, idIn, nameOf } from '../store/tenantIds.js';

export interface DatasetCursor {
  createTimeMs: number;
  id: string;
}

export interface NewDataset {
  /** Id in the store, see tenantIds.ts; null: the store makes one for the tenant that sorts by time. */
  datasetId: string | null;
  /** Default: `default`. */
  tenant?: string;
  displayName: string;
  /** Default: none. */
  labels?: Record<string, string>;
  owner?: string;
  files: Omit<DatasetFile, 'receivedBytes'>[];
  spec: DatasetSpec;
}

/** A data set that was prepared on another server. */
export interface AdoptedDataset extends Pick<
  Dataset,
  'id' | 'displayName' | 'labels' | 'owner' | 'createTimeMs'
> {
  tenant: string;
  spec: StoredDatasetSpec;
  prepared: PreparedDataset;
  files: Omit<NewDataset['files'][number], 'serverPath'>[];
}

/** One preparation of a data set: a later one has a higher epoch, and writes of an older one are refused. */
export interface Preparation {
  id: string;
  epoch: number;
}

/** A data set to prepare, with everything that the preparation needs. */
export type UnpreparedDataset = Omit<Dataset, 'spec'> & { spec: DatasetSpec } & Preparation;

/** Data sets: rows, uploaded files and prepared folders, all under datasets/{id} of the data folder. */
export class DatasetStore {
  /** Progress of current preparations, only in memory: it begins again with the server, as preparations do. */
  private readonly ratios = new Map<
    string,
    { ratio: number; timeMs: number; first: number; firstMs: number }
  >();

  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
    private readonly feed: ChangeFeed,
    private readonly leases: Leases,
    private readonly quotas = new Quotas(),
    /** Null if no other server shares the store. */
    private readonly parts: UploadParts | null = null,
  ) {}

  async find(datasetId: string): Promise<Dataset | undefined> {
    const row = await this.db
      .selectFrom('datasets')
      .select([...headColumns, 'spec'])
      .where('id', '=', datasetId)
      .executeTakeFirst();
    return row === undefined || isGone(row) ? undefined : await this.withFiles(row);
  }

  /** The same without its files and its specification. */
  async findHead(datasetId: string): Promise<DatasetHead | undefined> {
    const row = await this.db
      .selectFrom('datasets')
      .select(headColumns)
      .where('id', '=', datasetId)
      .executeTakeFirst();
    return row === undefined || isGone(row) ? undefined : this.toHead(row);
  }

  /** One page, newest first; `next` is null at the end. */
  async list(page: {
    tenant?: string;
    after: DatasetCursor | null;
    datasetsMax: number;
    /** Includes deleted ones until they are purged. */
    withDeleted?: boolean;
    /** All of these labels. */
    labels?: Record<string, string>;
    /** Empty for any. */
    owner?: string;
  }): Promise<{ datasets: DatasetSummary[]; next: DatasetCursor | null }> {
    let query = this.db
      .selectFrom('datasets')
      .select(headColumns)
      .where('tenant', '=', page.tenant ?? defaultTenant)
      .orderBy('create_time_ms', 'desc')
      .orderBy('id', 'desc')
      .limit(page.datasetsMax + 1);
    query = page.withDeleted
      ? query.where(({ eb, or }) =>
          or([eb('purge_time_ms', 'is', null), eb('purge_time_ms', '>', Date.now())]),
        )
      : query.where('delete_time_ms', 'is', null);
    if (page.owner) query = query.where('owner', '=', page.owner);
    for (const [key, value] of Object.entries(page.labels ?? {})) {
      query = query.where('id', 'in', (labels) =>
        labels
          .selectFrom('dataset_labels')
          .select('dataset_id')
          .where('key', '=', key)
          .where('value', '=', value),
      );
    }
    if (page.after !== null) {
      const { createTimeMs, id } = page.after;
      query = query.where(({ eb, refTuple, tuple }) =>
        eb(refTuple('create_time_ms', 'id'), '<', tuple(createTimeMs, id)),
      );
    }
    const rows = await query.execute();
    const datasets: DatasetSummary[] = [];
    for (const row of rows.slice(0, page.datasetsMax))
      datasets.push({ ...this.toHead(row), ...(await this.sizeOfFiles(row.id)) });
    const last = rows.length > page.datasetsMax ? datasets.at(-1) : undefined;
    return { datasets, next: last === undefined ? null : { createTimeMs: last.createTimeMs, id: last.id } };
  }

  /**
   * Stores a data set, or finds the one with the same id for an upload that resumes. `conflict`: the id exists with other files or
   * settings. `deleted`: it has to be restored first. `nameKept`: it cannot be restored any more, but its row is still there, because ended
   * jobs need its tokenizer or the janitor has not come yet. Throws QUOTA_EXCEEDED. A data set of server files needs no bytes: it is
   * `preparing` at once. With a shared store, the server that has these files copies them like an upload.
   */
  async register(dataset: NewDataset): Promise<Dataset | 'conflict' | 'deleted' | 'nameKept'> {
    const nowMs = Date.now();
    const { tenant = defaultTenant } = dataset;
    const id = dataset.datasetId ?? idIn(tenant, timedId('dataset', nowMs));
    const isCopied = ({ serverPath }: { serverPath: string | null }) =>
      serverPath === null || this.parts !== null;
    const needsBytes = dataset.files.some(isCopied);
    const { tokenizerJson, spec } = apart(dataset.spec);
    const files = fileRows(id, dataset.files);
    const outcome = await this.db.transaction().execute(async (trx) => {
      const state = needsBytes ? ('uploading' as const) : ('preparing' as const);
      const added = await trx
        .insertInto('datasets')
        .values({
          id,
          tenant,
          name: nameOf(id),
          display_name: dataset.displayName,
          labels: JSON.stringify(dataset.labels ?? {}),
          owner: dataset.owner ?? '',
          state,
          failure: null,
          spec,
          tokenizer_json: tokenizerJson,
          prepared: null,
          create_time_ms: nowMs,
          update_time_ms: nowMs,
        })
        .onConflict((conflict) => conflict.doNothing())
        .returning('id')
        .executeTakeFirst();
      if (added === undefined) {
        const known = await trx
          .selectFrom('datasets')
          .select(['spec', 'tokenizer_json', 'delete_time_ms', 'purge_time_ms'])
          .where('id', '=', id)
          .executeTakeFirstOrThrow();
        if (known.delete_time_ms !== null) return isGone(known) ? 'nameKept' : 'deleted';
        const knownFiles = await trx
          .selectFrom('dataset_files')
          .selectAll()
          .where('dataset_id', '=', id)
          .orderBy('file_index')
          .execute();
        const isSame = known.spec === spec && known.tokenizer_json === tokenizerJson;
        return isSame && areSameFiles(knownFiles, files) ? 'known' : 'conflict';
      }
      // Only for a new one: a repeated upload already counts.
      const newBytes = dataset.files.reduce((sum, file) => sum + (isCopied(file) ? file.sizeBytes : 0), 0);
      await this.quotas.requireBytes(trx, tenant, newBytes);
      const labels = labelRows(id, dataset.labels ?? {});
      if (labels.length > 0) await trx.insertInto('dataset_labels').values(labels).execute();
      // A statement has a limit of parameters.
      for (let first = 0; first < files.length; first += filesInStatement)
        await trx
          .insertInto('dataset_files')
          .values(files.slice(first, first + filesInStatement))
          .execute();
      return 'new';
    });
    if (outcome !== 'new' && outcome !== 'known') return outcome;
    const isAgain = outcome === 'known' && (await this.prepareAgain(id));
    const stored = (await this.find(id))!;
    if ((outcome === 'new' || isAgain) && stored.state === 'preparing')
      this.feed.announce({ topic: 'dataset', id });
    return stored;
  }

  /** Whether the name is taken, even by a deleted data set. */
  async hasRow(id: string): Promise<boolean> {
    return (
      (await this.db.selectFrom('datasets').select('id').where('id', '=', id).executeTakeFirst()) !==
      undefined
    );
  }

  /**
   * Stores a data set that was prepared elsewhere and is in its folder here, unless its name was taken meanwhile. Throws QUOTA_EXCEEDED.
   */
  async adopt(dataset: AdoptedDataset, name: Naming): Promise<void> {
    const { id, tenant, owner, displayName, labels, createTimeMs, spec, prepared, files } = dataset;
    await this.db.transaction().execute(async (trx) => {
      const added = await trx
        .insertInto('datasets')
        .values({
          ...{
            id,
            tenant,
            owner,
            name: nameOf(id),
            display_name: displayName,
            labels: JSON.stringify(labels),
          },
          ...{ state: 'ready' as const, failure: null, spec: JSON.stringify(spec), tokenizer_json: null },
          ...{ prepared: JSON.stringify(prepared), create_time_ms: createTimeMs, update_time_ms: Date.now() },
        })
        .onConflict((conflict) => conflict.doNothing())
        .returning('id')
        .executeTakeFirst();
      if (added === undefined) return;
      const parts = labelRows(id, labels);
      if (parts.length > 0) await trx.insertInto('dataset_labels').values(parts).execute();
      const rows = fileRows(
        id,
        files.map((file) => ({ ...file, serverPath: null })),
      );
      for (let first = 0; first < rows.length; first += filesInStatement)
        await trx
          .insertInto('dataset_files')
          .values(rows.slice(first, first + filesInStatement))
          .execute();
      await this.quotas.requireBytes(trx, tenant, 0);
      await name(trx);
    });
  }

  /** failed → preparing, if a limit or the machine was the reason: the same request tries again, as it may succeed now. */
  private async prepareAgain(datasetId: string): Promise<boolean> {
    const dataset = (await this.find(datasetId))!;
    if (dataset.state !== 'failed' || !passingFailures.has(dataset.failure?.reason ?? '')) return false;
    const { numUpdatedRows } = await this.db
      .updateTable('datasets')
      .set({ state: 'preparing', failure: null })
      .where('id', '=', datasetId)
      .where('state', '=', 'failed')
      .where('delete_time_ms', 'is', null)
      .executeTakeFirst();
    return numUpdatedRows > 0n;
  }

  /** Records that bytes are arriving: other servers, which do not have them, see that the upload is not abandoned. */
  async touch(id: string): Promise<void> {
    await this.db.updateTable('datasets').set({ update_time_ms: Date.now() }).where('id', '=', id).execute();
  }

  /**
   * uploading → preparing, once every byte is synced and verified; durable when it resolves. `name` makes the files visible. `deleted`: it
   * stays as it is, because nobody prepares a deleted one.
   */
  async uploaded(datasetId: string, name: Naming = async () => {}): Promise<Dataset | 'deleted'> {
    await this.db.transaction().execute(async (trx) => {
      const { numUpdatedRows } = await trx
        .updateTable('datasets')
        .set({ state: 'preparing' })
        .where('id', '=', datasetId)
        .where('state', '=', 'uploading')
        .where('delete_time_ms', 'is', null)
        .executeTakeFirst();
      if (numUpdatedRows > 0n) await name(trx);
    });
    const dataset = await this.find(datasetId);
    if (dataset === undefined || dataset.deleteTimeMs !== null) return 'deleted';
    this.feed.announce({ topic: 'dataset', id: datasetId });
    return dataset;
  }

  /** preparing → ready; false if another server prepares it. */
  async ready(
    { id: datasetId, epoch }: Preparation,
    prepared: PreparedDataset,
    name: Naming = async () => {},
  ): Promise<boolean> {
    this.ratios.delete(datasetId);
    return await this.db.transaction().execute(async (trx) => {
      const { numUpdatedRows } = await trx
        .updateTable('datasets')
        .set({ state: 'ready', prepared: JSON.stringify(prepared) })
        .where('id', '=', datasetId)
        .where('epoch', '=', epoch)
        .where('state', '=', 'preparing')
        .executeTakeFirst();
      if (numUpdatedRows > 0n) await name(trx);
      return numUpdatedRows > 0n;
    });
  }

  /** preparing → failed. */
  async failed(
    { id: datasetId, epoch }: Preparation,
    failure: { reason: string; message: string },
  ): Promise<void> {
    await this.db
      .updateTable('datasets')
      .set({ state: 'failed', failure: JSON.stringify(failure) })
      .where('id', '=', datasetId)
      .where('epoch', '=', epoch)
      .where('state', '=', 'preparing')
      .execute();
    this.ratios.delete(datasetId);
  }

  /** Takes the data set that has waited longest to be prepared and that nobody works on. */
  async nextToPrepare(): Promise<UnpreparedDataset | undefined> {
    const row = await this.db
      .updateTable('datasets')
      .set((eb) => ({ ...this.leases.grant(), epoch: eb('epoch', '+', 1) }))
      .where('id', '=', (query) =>
        query
          .selectFrom('datasets')
          .select('id')
          .where('state', '=', 'preparing')
          .where('delete_time_ms', 'is', null)
          .where(this.leases.isFree)
          .orderBy('create_time_ms')
          .orderBy('id')
          .limit(1)
          .forUpdate()
          .skipLocked(),
      )
      .returningAll()
      .executeTakeFirst();
    if (row === undefined) return undefined;
    const { spec, ...dataset } = await this.withFiles(row);
    const { tokenizer } = spec;
    if (tokenizer.kind !== 'huggingFace')
      return { ...dataset, spec: { ...spec, tokenizer }, epoch: row.epoch };
    const whole = { ...tokenizer, tokenizerJson: row.tokenizer_json! };
    return { ...dataset, spec: { ...spec, tokenizer: whole }, epoch: row.epoch };
  }

  /** Lets other servers prepare it. */
  async release({ id, epoch }: Preparation): Promise<void> {
    await this.db
      .updateTable('datasets')
      .set({ lease_server: null, lease_until_ms: null })
      .where('id', '=', id)
      .where('epoch', '=', epoch)
      .execute();
  }

  setPreparedRatio(datasetId: string, ratio: number, timeMs = Date.now()): void {
    const before = this.ratios.get(datasetId);
    // A smaller ratio belongs to another attempt.
    const isNew = before === undefined || ratio < before.ratio;
    const { first, firstMs } = isNew ? { first: ratio, firstMs: timeMs } : before;
    this.ratios.set(datasetId, { ratio, timeMs, first, firstMs });
  }

  /** Folder with the manifest and token shards of a ready data set, which the engine opens. */
  preparedFolder(datasetId: string): string {
    return folders.prepared(this.dataFolder, datasetId);
  }

  /** The file for the bytes of an upload. */
  uploadPath(datasetId: string, fileIndex: number): string {
    return join(folders.uploads(this.dataFolder, datasetId), String(fileIndex));
  }

  private async withFiles(row: HeadRow & Pick<DatasetRow, 'spec'>): Promise<Dataset> {
    const rows = await this.db
      .selectFrom('dataset_files')
      .selectAll()
      .where('dataset_id', '=', row.id)
      .orderBy('file_index')
      .execute();
    const arrived =
      row.state === 'uploading' && this.parts !== null
        ? await this.parts.received(`datasets/${row.id}`)
        : null;
    const files = await Promise.all(
      rows.map(async (file): Promise<DatasetFile> => ({
        fileName: file.file_name,
        serverPath: file.server_path,
        format: file.format,
        split: file.split,
        sizeBytes: file.size_bytes,
        sha256: file.sha256,
        // The length of the file is what survived a crash; after the upload is complete, the file may be gone.
        receivedBytes:
          arrived !== null
            ? (arrived.get(file.file_index) ?? 0)
            : row.state === 'uploading' && file.server_path === null
              ? await this.receivedBytes(row.id, file.file_index)
              : file.size_bytes,
      })),
    );
    return { ...this.toHead(row), files, spec: JSON.parse(row.spec) as StoredDatasetSpec };
  }

  private toHead(row: HeadRow): DatasetHead {
    return {
      id: row.id,
      displayName: row.display_name,
      labels: JSON.parse(row.labels) as Record<string, string>,
      owner: row.owner,
      state: row.state,
      failure: row.failure === null ? null : (JSON.parse(row.failure) as Dataset['failure']),
      prepared: row.prepared === null ? null : (JSON.parse(row.prepared) as PreparedDataset),
      ...this.preparation(row),
      createTimeMs: row.create_time_ms,
      deleteTimeMs: row.delete_time_ms,
      purgeTimeMs: row.purge_time_ms,
    };
  }

  private preparation({ id, state }: HeadRow): Pick<Dataset, 'preparedRatio' | 'preparedRatioPerSecond'> {
    if (state === 'ready') return { preparedRatio: 1 };
    const { ratio, timeMs, first, firstMs } = this.ratios.get(id) ?? {
      ratio: 0,
      timeMs: 0,
      first: 0,
      firstMs: 0,
    };
    return timeMs > firstMs && ratio > first
      ? { preparedRatio: ratio, preparedRatioPerSecond: (1000 * (ratio - first)) / (timeMs - firstMs) }
      : { preparedRatio: ratio };
  }

  private async sizeOfFiles(datasetId: string): Promise<{ fileCount: number; sizeBytes: number }> {
    const { count, bytes } = await this.db
      .selectFrom('dataset_files')
      .select(({ fn }) => [fn.countAll<number>().as('count'), fn.sum<number>('size_bytes').as('bytes')])
      .where('dataset_id', '=', datasetId)
      .executeTakeFirstOrThrow();
    return { fileCount: Number(count), sizeBytes: Number(bytes) };
  }

  private async receivedBytes(datasetId: string, fileIndex: number): Promise<number> {
    const stats = await stat(this.uploadPath(datasetId, fileIndex)).catch(() => undefined);
    return stats?.size ?? 0;
  }
}

/** Failures that say nothing about the data: at another time, or with other settings, the same files may succeed. */
const passingFailures: ReadonlySet<string> = new Set([
  'TOKENIZER_TIMED_OUT',
  'TASK_CRASHED',
  'TASK_TIMED_OUT',
  'TASK_ERROR',
  'OUT_OF_MEMORY',
  'STORAGE_FULL',
  'STORAGE_UNWRITABLE',
  'STORAGE_BROKEN',
  'FILE_UNREADABLE',
]);

const filesInStatement = 1000;

function fileRows(id: string, files: NewDataset['files']): DatasetFileRow[] {
  return files.map((file, index) => ({
    dataset_id: id,
    file_index: index,
    file_name: file.fileName,
    server_path: file.serverPath,
    format: file.format,
    split: file.split,
    size_bytes: file.sizeBytes,
    sha256: file.sha256,
  }));
}

function labelRows(id: string, labels: Readonly<Record<string, string>>): DatasetLabelRow[] {
  return Object.entries(labels).map(([key, value]) => ({ dataset_id: id, key, value }));
}

/** All columns except those that may be long. */
const headColumns = [
  'id',
  'display_name',
  'labels',
  'owner',
  'state',
  'failure',
  'prepared',
  'create_time_ms',
  'delete_time_ms',
  'purge_time_ms',
] as const;

type HeadRow = Pick<DatasetRow, (typeof headColumns)[number]>;

/** After its purge time it cannot be restored, so nobody sees it any more, even before the purge itself. */
function isGone(row: Pick<DatasetRow, 'purge_time_ms'>): boolean {
  return (row.purge_time_ms ?? Infinity) <= Date.now();
}

/** Separates the content of a tokenizer.json from the rest of a specification, which is small. */
function apart(spec: DatasetSpec): { tokenizerJson: string | null; spec: string } {
  const { tokenizer } = spec;
  if (tokenizer.kind !== 'huggingFace') return { tokenizerJson: null, spec: JSON.stringify(spec) };
  const { tokenizerJson, ...rest } = tokenizer;
  return { tokenizerJson, spec: JSON.stringify({ ...spec, tokenizer: rest }) };
}

/** A file with a format recognized from its content is the same as one with a format recognized from its name. */
function areSameFiles(a: DatasetFileRow[], b: DatasetFileRow[]): boolean {
  const isSame = (one: DatasetFileRow, other: DatasetFileRow): boolean =>
    one.file_name === other.file_name &&
    one.server_path === other.server_path &&
    (one.format === other.format || one.format === 'auto' || other.format === 'auto') &&
    one.split === other.split &&
    one.size_bytes === other.size_bytes &&
    one.sha256 === other.sha256;
  return a.length === b.length && a.every((row, index) => isSame(row, b[index]!));
}
