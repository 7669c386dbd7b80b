import { purgeOwner, type PurgeParts } from '../store/purges.js';
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
    private readonly parts: PurgeParts,
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
    const rows = await this.parts.db
      .selectFrom('jobs')
      .select('id')
      .where('purge_time_ms', '<=', nowMs)
      .execute();
    return rows.map(({ id }) => id);
  }

  /**
   * Deletes a job whose purge time has come, with its files, and its journal in slices. After a crash it can be called again. If another
   * server was first, a new job may have its id: that one stays.
   */
  async purge(jobId: string): Promise<void> {
    const { db } = this.parts;
    const nowMs = Date.now();
    const purgeable = db
      .selectFrom('jobs')
      .select('id')
      .where('id', '=', jobId)
      .where('purge_time_ms', '<=', nowMs);
    for (;;) {
      const { last } = await db
        .selectFrom('events')
        .select(({ fn }) => fn.max<number | null>('sequence').as('last'))
        .where('job_id', '=', purgeable)
        .executeTakeFirstOrThrow();
      if (last === null) break;
      // From the end: if the server stops in the middle, the rest of the journal still begins at its beginning.
      await db
        .deleteFrom('events')
        .where('job_id', '=', purgeable)
        .where('sequence', '>', last - eventsPerDelete)
        .execute();
    }
    await purgeOwner(this.parts, `jobs/${jobId}`, async (trx) => {
      const { numDeletedRows } = await trx
        .deleteFrom('jobs')
        .where('id', '=', jobId)
        .where('purge_time_ms', '<=', nowMs)
        .executeTakeFirst();
      if (numDeletedRows > 0n) await expireRequests(trx, `jobs/${jobId}`, nowMs);
      return numDeletedRows > 0n;
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
