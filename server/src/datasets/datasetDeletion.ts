import { terminalStates } from '../jobs/job.js';
import type { ChangeFeed } from '../store/changeFeed.js';
import { purgeOwner, type PurgeParts } from '../store/purges.js';
import type { Naming } from '../store/stage.js';

/** `usedBy`: a job that has not ended uses it. `preparing`: it is being prepared. */
export type DatasetDeletionResult =
  { outcome: 'done' | 'preparing' | 'notFound' } | { outcome: 'usedBy'; name: string };

/** Deletes data sets, restores them until their purge time, and removes them for good afterwards. */
export class DatasetDeletion {
  constructor(
    private readonly parts: PurgeParts,
    private readonly feed: ChangeFeed,
    private readonly options: { undeleteMs: number },
  ) {}

  /** Deletes a data set; for validateOnly only answers whether that is possible. A deleted one stays as it is. */
  async delete(id: string, { validateOnly = false } = {}): Promise<DatasetDeletionResult> {
    const nowMs = Date.now();
    const result = await this.parts.db.transaction().execute(async (trx): Promise<DatasetDeletionResult> => {
      // Submitting a job with it locks this row, too: so either the job is seen here, or the job sees the deletion.
      const row = await trx
        .selectFrom('datasets')
        .select(['state', 'delete_time_ms', 'purge_time_ms'])
        .where('id', '=', id)
        .forUpdate()
        .executeTakeFirst();
      if (row === undefined || (row.purge_time_ms ?? Infinity) <= nowMs) return { outcome: 'notFound' };
      if (row.delete_time_ms !== null) return { outcome: 'done' };
      if (row.state === 'preparing') return { outcome: 'preparing' };
      const job = await trx
        .selectFrom('job_datasets')
        .innerJoin('jobs', 'jobs.id', 'job_datasets.job_id')
        .select('jobs.id')
        .where('job_datasets.dataset_id', '=', id)
        .where('jobs.state', 'not in', terminalStates)
        .executeTakeFirst();
      if (job !== undefined) return { outcome: 'usedBy', name: `jobs/${job.id}` };
      if (!validateOnly)
        await trx
          .updateTable('datasets')
          .set({ delete_time_ms: nowMs, purge_time_ms: nowMs + this.options.undeleteMs })
          .where('id', '=', id)
          .execute();
      return { outcome: 'done' };
    });
    if (result.outcome === 'done' && !validateOnly) this.feed.announce({ topic: 'dataset', id });
    return result;
  }

  /** Restores a deleted data set; one that is not deleted stays as it is. */
  async undelete(id: string): Promise<DatasetDeletionResult> {
    const { numUpdatedRows } = await this.parts.db
      .updateTable('datasets')
      .set({ delete_time_ms: null, purge_time_ms: null })
      .where('id', '=', id)
      .where(({ eb, or }) => or([eb('purge_time_ms', 'is', null), eb('purge_time_ms', '>', Date.now())]))
      .executeTakeFirst();
    if (numUpdatedRows === 0n) return { outcome: 'notFound' };
    this.feed.announce({ topic: 'dataset', id }); // it may wait to be prepared
    return { outcome: 'done' };
  }

  /** Ids of data sets with something to remove now: what was left for jobs that need it goes with the last of these jobs. */
  async toPurge(nowMs: number): Promise<string[]> {
    const rows = await this.parts.db
      .selectFrom('datasets')
      .select('id')
      .where('purge_time_ms', '<=', nowMs)
      .where(({ eb, or, not, exists, selectFrom }) =>
        or([
          eb('purged', '=', 0),
          not(
            exists(
              selectFrom('job_datasets')
                .select('job_datasets.job_id')
                .whereRef('job_datasets.dataset_id', '=', 'datasets.id'),
            ),
          ),
        ]),
      )
      .execute();
    return rows.map(({ id }) => id);
  }

  /** Whether ended jobs still need the tokenizer of a data set to purge. */
  async isNeeded(id: string): Promise<boolean> {
    const job = await this.parts.db
      .selectFrom('job_datasets')
      .innerJoin('datasets', 'datasets.id', 'job_datasets.dataset_id')
      .select('job_id')
      .where('dataset_id', '=', id)
      .where('purge_time_ms', '<=', Date.now()) // another server may have purged it, and a new one have its id
      .executeTakeFirst();
    return job !== undefined;
  }

  /** Records that everything but the tokenizer was removed. */
  async purgedButTokenizer(id: string, forget: Naming): Promise<void> {
    await this.parts.db.transaction().execute(async (trx) => {
      const { numUpdatedRows } = await trx
        .updateTable('datasets')
        .set({ purged: 1 })
        .where('id', '=', id)
        .where('purge_time_ms', '<=', Date.now())
        .executeTakeFirst();
      if (numUpdatedRows > 0n) await forget(trx);
    });
  }

  /** Deletes a data set that no job needs, with its files. After a crash it can be called again. */
  async purge(id: string): Promise<void> {
    await purgeOwner(this.parts, `datasets/${id}`, async (trx) => {
      const { numDeletedRows } = await trx
        .deleteFrom('datasets')
        .where('id', '=', id)
        .where('purge_time_ms', '<=', Date.now())
        .executeTakeFirst();
      return numDeletedRows > 0n;
    });
  }
}
