import { notePurge } from '../store/chunkDigests.js';
import type { Database } from '../store/database.js';
import { expireRequests } from '../store/requests.js';
import { isTerminal, terminalStates, type Job } from './job.js';
import type { JobChange } from './jobChange.js';
import type { JobJournal } from './jobJournal.js';
import { toJob } from './jobRow.js';

/** `wrongState`: it has not ended. `changed`: it has another version. `usedBy`: the name of what needs it. */
export type DeletionResult =
  | { outcome: 'done'; job: Job }
  | { outcome: 'wrongState' | 'changed'; job: Job }
  | { outcome: 'usedBy'; name: string }
  | { outcome: 'notFound' };

/** Events deleted per transaction: deleting a journal of a million at once would make everybody wait. */
const eventsPerDelete = 5000;

/** Deletes jobs that have ended, restores them until their purge time, and removes them for good afterwards. */
export class JobDeletion {
  constructor(
    private readonly db: Database,
    private readonly journal: JobJournal,
    private readonly options: { undeleteMs: number },
  ) {}

  /** Deletes a job; for validateOnly only answers whether that is possible. A deleted one stays as it is. */
  async delete(
    jobId: string,
    { version = null, validateOnly = false }: { version?: number | null; validateOnly?: boolean } = {},
  ): Promise<DeletionResult> {
    return await this.journal.change(async (change): Promise<DeletionResult> => {
      const row = await change.find(jobId);
      if (row === undefined || isPurgeable(row.purge_time_ms, change.nowMs)) return { outcome: 'notFound' };
      if (row.delete_time_ms !== null) return { outcome: 'done', job: toJob(row) };
      if ((version ?? row.version) !== row.version) return { outcome: 'changed', job: toJob(row) };
      if (!isTerminal(row.state)) return { outcome: 'wrongState', job: toJob(row) };
      const name = await userOf(change, jobId);
      if (name !== undefined) return { outcome: 'usedBy', name };
      if (validateOnly) return { outcome: 'done', job: toJob(row) };
      const times = { delete_time_ms: change.nowMs, purge_time_ms: change.nowMs + this.options.undeleteMs };
      return { outcome: 'done', job: toJob(await change.update(row, times)) };
    });
  }

  /** Restores a deleted job; one that is not deleted stays as it is. */
  async undelete(jobId: string): Promise<DeletionResult> {
    return await this.journal.change(async (change): Promise<DeletionResult> => {
      const row = await change.find(jobId);
      if (row === undefined || isPurgeable(row.purge_time_ms, change.nowMs)) return { outcome: 'notFound' };
      if (row.delete_time_ms === null) return { outcome: 'done', job: toJob(row) };
      const times = { delete_time_ms: null, purge_time_ms: null };
      return { outcome: 'done', job: toJob(await change.update(row, times)) };
    });
  }

  /** Ids of jobs whose purge time has come. */
  async toPurge(nowMs: number): Promise<string[]> {
    const rows = await this.db.selectFrom('jobs').select('id').where('purge_time_ms', '<=', nowMs).execute();
    return rows.map(({ id }) => id);
  }

  /**
   * Deletes the rows of a job whose purge time has come, its journal in slices, and marks its folder for removal. After a crash it can be
   * called again.
   */
  async purge(jobId: string): Promise<void> {
    for (;;) {
      const { last } = await this.db
        .selectFrom('events')
        .select(({ fn }) => fn.max<number | null>('sequence').as('last'))
        .where('job_id', '=', jobId)
        .executeTakeFirstOrThrow();
      if (last === null) break;
      // From the end: if the server stops in the middle, the rest of the journal still begins at its beginning.
      await this.db
        .deleteFrom('events')
        .where('job_id', '=', jobId)
        .where('sequence', '>', last - eventsPerDelete)
        .execute();
    }
    await this.db.transaction().execute(async (trx) => {
      await expireRequests(trx, `jobs/${jobId}`, Date.now());
      await notePurge(trx, `jobs/${jobId}`);
      await trx.deleteFrom('jobs').where('id', '=', jobId).execute();
    });
  }
}

function isPurgeable(purgeTimeMs: number | null, nowMs: number): boolean {
  return purgeTimeMs !== null && purgeTimeMs <= nowMs;
}

/** The name of what still needs this job: an unfinished job that begins at it, or a pending export of it. */
async function userOf({ trx }: JobChange, jobId: string): Promise<string | undefined> {
  const artifacts = `jobs/${jobId}/artifacts/`;
  const job = await trx
    .selectFrom('jobs')
    .select('id')
    .where('state', 'not in', terminalStates)
    .where(({ eb, or, and }) =>
      or([
        eb('origin_job_id', '=', jobId),
        and([
          eb('base_weights_name', '>', artifacts),
          eb('base_weights_name', '<', `jobs/${jobId}/artifacts0`),
        ]),
      ]),
    )
    .executeTakeFirst();
  if (job !== undefined) return `jobs/${job.id}`;
  const pending = await trx
    .selectFrom('artifacts')
    .select('id')
    .where('job_id', '=', jobId)
    .where('state', '=', 'pending')
    .executeTakeFirst();
  return pending && `${artifacts}${pending.id}`;
}
