import type { RunUpdate } from '@relora/engine/plan';
import type { SelectQueryBuilder } from 'kysely';
import type { Database } from '../store/database.js';
import type { Schema } from '../store/schema.js';
import type { Leases } from '../store/leases.js';
import { terminalStates, type Job, type JobState } from './job.js';
import type { AttemptKey } from './jobAttempts.js';
import { toJob } from './jobRow.js';
import { defaultTenant } from '../store/tenantIds.js';
import { queuePositions } from './queueOrder.js';
import { updatesOf } from './jobUpdates.js';
import { evaluationsOf, keepEvaluation, type KeptEvaluation } from './modelEvaluations.js';

/** Position in a list of jobs: the last job of the previous page. */
export interface JobCursor {
  createTimeMs: number;
  id: string;
}

export interface JobFilter {
  /** Default: `default`. */
  tenant?: string;
  /** Empty for all. */
  states: JobState[];
  labels: Record<string, string>;
  order: 'newestFirst' | 'oldestFirst';
  after: JobCursor | null;
  jobsMax: number;
  /** Includes deleted jobs until they are purged. */
  withDeleted?: boolean;
}

/** What a watch of many jobs knows about each. */
export type WatchedJob = Pick<Job, 'id' | 'state' | 'createTimeMs' | 'lastSequence'>;

const idsInStatement = 500;

/** Reads jobs. Changes are made by JobQueue, JobControl and JobAttempts. */
export class JobStore {
  constructor(private readonly db: Database) {}

  async find(jobId: string): Promise<Job | undefined> {
    const row = await this.db.selectFrom('jobs').selectAll().where('id', '=', jobId).executeTakeFirst();
    // After its purge time it cannot be restored, so nobody sees it any more, even before the purge itself.
    if (row === undefined || (row.purge_time_ms ?? Infinity) <= Date.now()) return undefined;
    return toJob(row, row.state === 'queued' ? ((await queuePositions(this.db)).get(jobId) ?? 0) : 0);
  }

  /** Attempts that are in progress according to the store, but whose server was silent for too long. */
  async freeAttempts(leases: Leases): Promise<AttemptKey[]> {
    return await this.db
      .selectFrom('jobs')
      .select(['id as jobId', 'attempt'])
      .where('state', 'in', ['starting', 'running'])
      .where(leases.isFree)
      .orderBy('create_time_ms')
      .execute();
  }

  /** Updates of a job's run, in the order of their numbers. */
  async updatesOf(jobId: string): Promise<RunUpdate[]> {
    return await updatesOf(this.db, jobId);
  }

  /** Results of EvaluateModel calls for its weights, newest first. */
  async evaluationsOf(jobId: string): Promise<KeptEvaluation[]> {
    return await evaluationsOf(this.db, jobId);
  }

  async keepEvaluation(jobId: string, evaluation: KeptEvaluation): Promise<void> {
    await keepEvaluation(this.db, jobId, evaluation);
  }

  /** Seconds for which the processes of ended attempts used their devices, in total. */
  async deviceSeconds({ id, createTimeMs }: Pick<Job, 'id' | 'createTimeMs'>): Promise<number> {
    const rows = await this.db
      .selectFrom('attempts')
      .select(['start_time_ms', 'end_time_ms', 'processes'])
      .where('job_id', '=', id)
      .where('job_create_time_ms', '=', createTimeMs)
      .execute();
    return (
      rows.reduce(
        (sum, { start_time_ms, end_time_ms, processes }) =>
          sum + ((end_time_ms ?? start_time_ms) - start_time_ms) * processes,
        0,
      ) / 1000
    );
  }

  /** One page of jobs; `next` is null at the end. New jobs do not shift pages: the cursor is a position, not a count. */
  async list(filter: JobFilter): Promise<{ jobs: Job[]; next: JobCursor | null }> {
    const [compare, direction] =
      filter.order === 'newestFirst' ? (['<', 'desc'] as const) : (['>', 'asc'] as const);
    let query = this.db
      .selectFrom('jobs')
      .selectAll()
      .where('tenant', '=', filter.tenant ?? defaultTenant)
      .orderBy('create_time_ms', direction)
      .orderBy('id', direction)
      .limit(filter.jobsMax + 1);
    query = filter.withDeleted
      ? query.where(({ eb, or }) =>
          or([eb('purge_time_ms', 'is', null), eb('purge_time_ms', '>', Date.now())]),
        )
      : query.where('delete_time_ms', 'is', null);
    if (filter.states.length > 0) query = query.where('state', 'in', filter.states);
    if (filter.after !== null) {
      const { createTimeMs, id } = filter.after;
      query = query.where(({ eb, refTuple, tuple }) =>
        eb(refTuple('create_time_ms', 'id'), compare, tuple(createTimeMs, id)),
      );
    }
    query = withLabels(query, filter.labels);
    const rows = await query.execute();
    const page = rows.slice(0, filter.jobsMax);
    const positions = page.some((row) => row.state === 'queued')
      ? await queuePositions(this.db)
      : new Map<string, number>();
    const last = rows.length > page.length ? page.at(-1) : undefined;
    return {
      jobs: page.map((row) => toJob(row, positions.get(row.id) ?? 0)),
      next: last === undefined ? null : { createTimeMs: last.create_time_ms, id: last.id },
    };
  }

  /** Jobs of a watch that were created after a time or have not ended, oldest first. */
  async watched({
    tenant,
    jobIds,
    labels,
    createdAfterMs,
  }: {
    tenant: string;
    /** Null for all. */
    jobIds: readonly string[] | null;
    labels: Record<string, string>;
    createdAfterMs: number;
  }): Promise<WatchedJob[]> {
    let query = this.db
      .selectFrom('jobs')
      .select(['id', 'state', 'create_time_ms as createTimeMs', 'last_sequence as lastSequence'])
      .where('tenant', '=', tenant)
      .where('delete_time_ms', 'is', null)
      .where(({ eb, or }) =>
        or([eb('create_time_ms', '>', createdAfterMs), eb('state', 'not in', terminalStates)]),
      )
      .orderBy('create_time_ms')
      .orderBy('id');
    if (jobIds !== null) query = query.where('id', 'in', jobIds);
    return await withLabels(query, labels).execute();
  }

  /** Those of a tenant's jobs that still exist, whatever their state and labels. */
  async watchedOf(tenant: string, jobIds: readonly string[]): Promise<WatchedJob[]> {
    const found: WatchedJob[] = [];
    for (let first = 0; first < jobIds.length; first += idsInStatement) {
      const rows = await this.db
        .selectFrom('jobs')
        .select(['id', 'state', 'create_time_ms as createTimeMs', 'last_sequence as lastSequence'])
        .where('tenant', '=', tenant)
        .where('id', 'in', jobIds.slice(first, first + idsInStatement))
        .execute();
      for (const row of rows) found.push(row);
    }
    return found;
  }

  /** Sequence numbers of the newest events of jobs. */
  async lastSequences(jobIds: readonly string[]): Promise<{ id: string; lastSequence: number }[]> {
    const found: { id: string; lastSequence: number }[] = [];
    for (let first = 0; first < jobIds.length; first += idsInStatement) {
      const rows = await this.db
        .selectFrom('jobs')
        .select(['id', 'last_sequence as lastSequence'])
        .where('id', 'in', jobIds.slice(first, first + idsInStatement))
        .execute();
      for (const row of rows) found.push(row);
    }
    return found;
  }

  async countByState(): Promise<Record<JobState, number>> {
    const counts: Record<JobState, number> = {
      queued: 0,
      starting: 0,
      running: 0,
      paused: 0,
      succeeded: 0,
      failed: 0,
      cancelled: 0,
    };
    const rows = await this.db
      .selectFrom('jobs')
      .select(({ fn }) => ['state', fn.countAll<number>().as('count')])
      .groupBy('state')
      .execute();
    for (const { state, count } of rows) counts[state] = count;
    return counts;
  }
}

/** Only jobs that have all of the labels. */
function withLabels<Row>(
  query: SelectQueryBuilder<Schema, 'jobs', Row>,
  labels: Record<string, string>,
): SelectQueryBuilder<Schema, 'jobs', Row> {
  for (const [key, value] of Object.entries(labels))
    query = query.where('id', 'in', (found) =>
      found.selectFrom('job_labels').select('job_id').where('key', '=', key).where('value', '=', value),
    );
  return query;
}
