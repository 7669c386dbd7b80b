import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { jobAtWeights } from '../jobs/jobAtWeights.js';
import type { Database } from '../store/database.js';
import { folders } from '../store/folders.js';
import type { WeightsRow } from '../store/schema.js';
import type { Naming, Stage } from '../store/stage.js';
import { timedId } from '../store/timedId.js';
import type { Weights, WeightsFile, WeightsReport } from './weights.js';
import { Quotas } from '../quotas/quotas.js';
import { partsFolder, type UploadParts } from '../uploads/uploadParts.js';
import { defaultTenant, idIn, nameOf } from '../store/tenantIds.js';

export interface WeightsCursor {
  createTimeMs: number;
  id: string;
}

export interface NewWeights {
  /** Id in the store, see tenantIds.ts; null: the store makes one for the tenant that sorts by time. */
  weightsId: string | null;
  /** Default: `default`. */
  tenant?: string;
  displayName: string;
  /** Default: none. */
  labels?: Record<string, string>;
  owner?: string;
  files: Omit<WeightsFile, 'receivedBytes'>[];
}

/** Uploaded models: rows, and for each a folder weights/{id} in the data folder. */
export class WeightsStore {
  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
    private readonly stage: Stage,
    private readonly quotas = new Quotas(),
    /** Null if no other server shares the store. */
    private readonly parts: UploadParts | null = null,
  ) {}

  /** The folder of the files, which the engine opens. */
  folder(weightsId: string): string {
    return folders.weights(this.dataFolder, weightsId);
  }

  async find(weightsId: string): Promise<Weights | undefined> {
    const row = await this.db
      .selectFrom('weights')
      .selectAll()
      .where('id', '=', weightsId)
      .executeTakeFirst();
    return row === undefined ? undefined : await this.withFiles(row);
  }

  /** One page, newest first; `next` is null at the end. */
  async list(page: {
    tenant?: string;
    after: WeightsCursor | null;
    weightsMax: number;
    /** All of these labels. */
    labels?: Record<string, string>;
    /** Empty for any. */
    owner?: string;
  }): Promise<{ weights: Weights[]; next: WeightsCursor | null }> {
    let query = this.db
      .selectFrom('weights')
      .selectAll()
      .where('tenant', '=', page.tenant ?? defaultTenant)
      .orderBy('create_time_ms', 'desc')
      .orderBy('id', 'desc')
      .limit(page.weightsMax + 1);
    if (page.owner) query = query.where('owner', '=', page.owner);
    for (const [key, value] of Object.entries(page.labels ?? {})) {
      query = query.where('id', 'in', (labels) =>
        labels
          .selectFrom('weights_labels')
          .select('weights_id')
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
    const weights: Weights[] = [];
    for (const row of rows.slice(0, page.weightsMax)) weights.push(await this.withFiles(row));
    const last = rows.length > page.weightsMax ? weights.at(-1) : undefined;
    return { weights, next: last === undefined ? null : { createTimeMs: last.createTimeMs, id: last.id } };
  }

  /**
   * Stores new weights, or finds those with the same id and files for an upload that resumes. `conflict`: other files. Throws
   * QUOTA_EXCEEDED.
   */
  async register(weights: NewWeights): Promise<Weights | 'conflict'> {
    const nowMs = Date.now();
    const { tenant = defaultTenant, displayName, labels = {}, owner = '', files } = weights;
    const id = weights.weightsId ?? idIn(tenant, timedId('weights', nowMs));
    const known = await this.find(id);
    if (known !== undefined) return filesText(known.files) === filesText(files) ? known : 'conflict';
    // Left by a deletion that a crash interrupted.
    await rm(this.folder(id), { recursive: true, force: true });
    const rows = files.map((file, index) => ({
      weights_id: id,
      file_index: index,
      file_name: file.fileName,
      size_bytes: file.sizeBytes,
      sha256: file.sha256,
    }));
    const isNew = await this.db.transaction().execute(async (trx) => {
      const added = await trx
        .insertInto('weights')
        .values({
          id,
          tenant,
          name: nameOf(id),
          display_name: displayName,
          labels: JSON.stringify(labels),
          owner,
          state: 'uploading',
          report: null,
          create_time_ms: nowMs,
          update_time_ms: nowMs,
        })
        .onConflict((conflict) => conflict.doNothing())
        .returning('id')
        .executeTakeFirst();
      if (added === undefined) return false;
      const newBytes = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
      await this.quotas.requireBytes(trx, tenant, newBytes);
      const pairs = Object.entries(labels).map(([key, value]) => ({ weights_id: id, key, value }));
      if (pairs.length > 0) await trx.insertInto('weights_labels').values(pairs).execute();
      // A statement has a limit of parameters.
      for (let first = 0; first < rows.length; first += filesInStatement)
        await trx
          .insertInto('weights_files')
          .values(rows.slice(first, first + filesInStatement))
          .execute();
      return true;
    });
    return isNew ? (await this.find(id))! : await this.register({ ...weights, weightsId: id });
  }

  /** Records that bytes are arriving: other servers, which do not have them, see that the upload is not abandoned. */
  async touch(id: string): Promise<void> {
    await this.db.updateTable('weights').set({ update_time_ms: Date.now() }).where('id', '=', id).execute();
  }

  /** uploading → ready; `name` makes the files visible. */
  async ready(weightsId: string, report: WeightsReport, name: Naming): Promise<Weights> {
    await this.db.transaction().execute(async (trx) => {
      const { numUpdatedRows } = await trx
        .updateTable('weights')
        .set({ state: 'ready', report: JSON.stringify(report) })
        .where('id', '=', weightsId)
        .where('state', '=', 'uploading')
        .executeTakeFirst();
      if (numUpdatedRows > 0n) await name(trx);
    });
    return (await this.find(weightsId))!;
  }

  /** Deletes the row first: a folder without a row belongs to nobody. If a job needs the weights, deletes nothing and returns its name. */
  async remove(weightsId: string): Promise<{ usedBy: string } | 'removed'> {
    const user = await this.db.transaction().execute(async (trx) => {
      // Submitting a job that begins at them locks this row, too.
      await trx.selectFrom('weights').select('id').where('id', '=', weightsId).forUpdate().execute();
      const job = await jobAtWeights(trx, `weights/${weightsId}`);
      if (job !== undefined) return job;
      await this.stage.forget(trx, `weights/${weightsId}`);
      await this.stage.forget(trx, partsFolder(`weights/${weightsId}`));
      await trx.deleteFrom('weights').where('id', '=', weightsId).execute();
      return undefined;
    });
    if (user !== undefined) return { usedBy: user };
    await rm(this.folder(weightsId), { recursive: true, force: true });
    return 'removed';
  }

  private async withFiles(row: WeightsRow): Promise<Weights> {
    const rows = await this.db
      .selectFrom('weights_files')
      .selectAll()
      .where('weights_id', '=', row.id)
      .orderBy('file_index')
      .execute();
    const arrived =
      row.state === 'uploading' && this.parts !== null
        ? await this.parts.received(`weights/${row.id}`)
        : null;
    const lengthOf = async ({ file_index: index, file_name: name }: (typeof rows)[number]) =>
      arrived === null ? await this.lengthOf(row.id, name) : (arrived.get(index) ?? 0);
    const files = await Promise.all(
      rows.map(async (file): Promise<WeightsFile> => ({
        fileName: file.file_name,
        sizeBytes: file.size_bytes,
        sha256: file.sha256,
        // The length of the file is what survived a crash.
        receivedBytes: row.state === 'ready' ? file.size_bytes : await lengthOf(file),
      })),
    );
    return {
      id: row.id,
      displayName: row.display_name,
      labels: JSON.parse(row.labels) as Record<string, string>,
      owner: row.owner,
      state: row.state,
      files,
      report: row.report === null ? null : (JSON.parse(row.report) as WeightsReport),
      createTimeMs: row.create_time_ms,
    };
  }

  private async lengthOf(weightsId: string, fileName: string): Promise<number> {
    const stats = await stat(join(this.folder(weightsId), fileName)).catch(() => undefined);
    return stats?.size ?? 0;
  }
}

const filesInStatement = 1000;

function filesText(files: readonly Omit<WeightsFile, 'receivedBytes'>[]): string {
  return JSON.stringify(files.map(({ fileName, sizeBytes, sha256 }) => [fileName, sizeBytes, sha256]));
}
