import { sql } from 'kysely';
import type { Database } from '../store/database.js';
import type { EventRow } from '../store/schema.js';
import { isTerminal, type Job, type JobEvent, type JobEventBody } from './job.js';
import { JobChange } from './jobChange.js';
import { toEvent, toJob } from './jobRow.js';

/** Called after a commit with the job as it now stands and the events that were appended, maybe none. Must not throw. */
export type AppendListener = (job: Job, events: JobEvent[]) => void;

export type RestartEntry = JobEvent & { body: JobEventBody & { kind: 'restart' } };

/**
 * The events of all jobs: sequence numbers 1, 2, 3 … without gaps within a job, each taken in the transaction that makes
 * the change it tells of. An event that a listener or reader has seen is on the disk.
 */
export class JobJournal {
  private readonly listeners = new Set<AppendListener>();
  /** Watchers that wait, by job. */
  private readonly waiting = new Map<string, Set<() => void>>();

  constructor(private readonly db: Database) {}

  /** Events above a sequence number, oldest first; isComplete when the job's final event is among or before them. */
  async readAfter(
    jobId: string,
    sequence: number,
    eventsMax = 256,
  ): Promise<{ events: JobEvent[]; isComplete: boolean }> {
    // The job first: a final event that is stored between the two reads is then found by the next call.
    const job = await this.db
      .selectFrom('jobs')
      .select(['state', 'last_sequence'])
      .where('id', '=', jobId)
      .executeTakeFirst();
    if (job === undefined) return { events: [], isComplete: true };
    const rows = await this.db
      .selectFrom('events')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('sequence', '>', sequence)
      .orderBy('sequence')
      .limit(eventsMax)
      .execute();
    const reached = rows.at(-1)?.sequence ?? sequence;
    return { events: rows.map(toEvent), isComplete: isTerminal(job.state) && reached >= job.last_sequence };
  }

  /**
   * Restarts of a job with a number above `after`, in order. One that was repeated after a crash stands here once, as it was
   * made last.
   */
  async restartsAfter(jobId: string, after: number, restartsMax: number): Promise<RestartEntry[]> {
    // What is selected beside max() comes from the row that has the maximum: SQLite promises it. The words are those of the index.
    const { rows } = await sql<Pick<EventRow, 'attempt' | 'time_ms' | 'body'> & { last: number }>`
      select max(sequence) as last, attempt, time_ms, body from events
      where job_id = ${jobId} and json_extract(body, '$.kind') = 'restart'
        and json_extract(body, '$.restart') > ${after}
      group by json_extract(body, '$.restart') order by json_extract(body, '$.restart') limit ${restartsMax}
    `.execute(this.db);
    return rows.map(({ last, ...row }) => {
      const event = toEvent({ ...row, job_id: jobId, sequence: last, final: 0 });
      return { ...event, body: event.body as RestartEntry['body'] };
    });
  }

  /** Events below a sequence number, newest first; none at the beginning. */
  async readBefore(jobId: string, sequence: number, eventsMax: number): Promise<JobEvent[]> {
    const rows = await this.db
      .selectFrom('events')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('sequence', '<', sequence)
      .orderBy('sequence', 'desc')
      .limit(eventsMax)
      .execute();
    return rows.map(toEvent);
  }

  /** Resolves once the job has an event above the sequence number, does not exist, or the signal aborts. */
  async changedSince(jobId: string, sequence: number, signal: AbortSignal): Promise<void> {
    // Listening begins before the look at the store: what is appended between the two wakes us.
    const { promise, end } = this.nextAppend(jobId, signal);
    try {
      const job = await this.db
        .selectFrom('jobs')
        .select('last_sequence')
        .where('id', '=', jobId)
        .executeTakeFirst();
      if (job === undefined || job.last_sequence > sequence) return;
      await promise;
    } finally {
      end();
    }
  }

  /** Listens to every change of every job, for metrics and for the supervisor; returns the function that ends it. */
  onAppended(listener: AppendListener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Runs one transaction that changes jobs and tells of it after the commit. The work awaits nothing but its own statements. */
  async change<T>(work: (change: JobChange) => Promise<T>): Promise<T> {
    let change: JobChange | undefined;
    const result = await this.db.transaction().execute(async (trx) => {
      change = new JobChange(trx, Date.now());
      return await work(change);
    });
    for (const { row, events } of change?.touched.values() ?? []) {
      const job = toJob(row);
      for (const listener of this.listeners) listener(job, events);
      for (const wake of this.waiting.get(row.id) ?? []) wake();
    }
    return result;
  }

  private nextAppend(jobId: string, signal: AbortSignal): { promise: Promise<void>; end: () => void } {
    let wake = (): void => {};
    const promise = new Promise<void>((resolve) => (wake = resolve));
    const waiters = this.waiting.get(jobId) ?? new Set();
    this.waiting.set(jobId, waiters);
    waiters.add(wake);
    signal.addEventListener('abort', wake);
    if (signal.aborted) wake();
    return {
      promise,
      end: () => {
        signal.removeEventListener('abort', wake);
        waiters.delete(wake);
        if (waiters.size === 0 && this.waiting.get(jobId) === waiters) this.waiting.delete(jobId);
      },
    };
  }
}
