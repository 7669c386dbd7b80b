import { setImmediate as nextTurn } from 'node:timers/promises';
import type { DocumentsReport } from '@relora/engine/plan';
import type { ChangeFeed } from '../store/changeFeed.js';
import type { Database } from '../store/database.js';
import { isTerminal, type Job, type JobEvent, type JobEventBody } from './job.js';
import { JobChange } from './jobChange.js';
import { toEvent, toJob } from './jobRow.js';
import { RecentEvents } from './recentEvents.js';
import { foldedSpansAfter, spansBackwards, spanStepCountMin, toStepBody } from './stepSpans.js';

/** Called after a commit with the updated job and the events that were appended, maybe none. Must not throw. */
export type AppendListener = (job: Job, events: JobEvent[]) => void;

/** Events that are read in one statement to find the report of a step. */
const documentsPageEvents = 256;

export type RestartEntry = JobEvent & { body: JobEventBody & { kind: 'restart' } };

/**
 * The events of all jobs: sequence numbers 1, 2, 3 … without gaps within a job, each assigned in the transaction that makes the change it
 * reports. An event that a listener or reader has seen is on the disk. Old step events are folded into spans (historyFolding.ts), which say
 * which numbers they stand for.
 */
export class JobJournal {
  private readonly listeners = new Set<AppendListener>();
  /** Waiting watchers, by job. */
  private readonly waiting = new Map<string, Set<() => void>>();
  private readonly recent = new RecentEvents();
  /** Reads of the store that begin in the next turn of the event loop, by what is read. */
  private readonly reads = new Map<string, Promise<unknown>>();
  /** True while this process announces a change, which the feed repeats to it. */
  private isAnnouncing = false;

  constructor(
    private readonly db: Database,
    private readonly feed: ChangeFeed,
    /** The clock of the database, if servers share one. */
    readonly now: () => number = Date.now,
  ) {
    feed.listen((change) => {
      if (change === null) {
        this.recent.forget(null);
        for (const jobId of this.waiting.keys()) this.wake(jobId);
      } else if (change.topic === 'job') {
        if (!this.isAnnouncing) this.recent.forget(change.id);
        this.wake(change.id);
      }
    });
  }

  /** Events after a sequence number, oldest first; isComplete if the job's final event is among or before them. */
  async readAfter(
    jobId: string,
    sequence: number,
    eventsMax = 256,
  ): Promise<{ events: JobEvent[]; isComplete: boolean }> {
    const found =
      this.recent.after(jobId, sequence, eventsMax) ??
      (await this.together(
        `${jobId} ${sequence} ${eventsMax}`,
        async () => await this.storedAfter(jobId, sequence, eventsMax),
      ));
    // A full page is mostly followed by another: the reader of a long journal gives others a turn after each page.
    if (found.events.length >= eventsMax) await nextTurn();
    return found;
  }

  private async storedAfter(
    jobId: string,
    sequence: number,
    eventsMax: number,
  ): Promise<{ events: JobEvent[]; isComplete: boolean }> {
    const { mark } = this.recent;
    // The job is read first: a final event that is stored between the two reads is then found by the next call.
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
    // Read after the events: what is removed between the two reads is then seen twice, but never missed.
    const spans = await foldedSpansAfter(this.db, jobId, sequence, eventsMax);
    const events = inOrder(rows.map(toEvent), spans, eventsMax);
    const reached = events.at(-1)?.sequence ?? sequence;
    const isComplete = isTerminal(job.state) && reached >= job.last_sequence;
    if (reached === job.last_sequence)
      this.recent.follow(jobId, { lastSequence: reached, isComplete: isTerminal(job.state) }, mark);
    return { events, isComplete };
  }

  /** Events other than steps after a sequence number, oldest first, and the number up to which they are complete. */
  async noticesAfter(
    jobId: string,
    sequence: number,
    eventsMax = 256,
  ): Promise<{ events: JobEvent[]; through: number }> {
    const job = await this.db
      .selectFrom('jobs')
      .select('last_sequence')
      .where('id', '=', jobId)
      .executeTakeFirst();
    const rows = await this.db
      .selectFrom('events')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('sequence', '>', sequence)
      .where('sequence', '<=', job?.last_sequence ?? 0)
      .where('step', 'is', null)
      .orderBy('sequence')
      .limit(eventsMax)
      .execute();
    const through = rows.length < eventsMax ? job?.last_sequence : rows.at(-1)!.sequence;
    return { events: rows.map(toEvent), through: through ?? sequence };
  }

  /**
   * Restarts of a job with a number above `after`, in order. A restart that was repeated after a crash appears once, as it was last made.
   */
  async restartsAfter(jobId: string, after: number, restartsMax: number): Promise<RestartEntry[]> {
    const rows = await this.db
      .selectFrom('events')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('restart', '>', after)
      .where(({ exists, not, selectFrom }) =>
        not(
          exists(
            selectFrom('events as later')
              .select('later.sequence')
              .where('later.job_id', '=', jobId)
              .whereRef('later.restart', '=', 'events.restart')
              .whereRef('later.sequence', '>', 'events.sequence'),
          ),
        ),
      )
      .orderBy('restart')
      .limit(restartsMax)
      .execute();
    return rows.map((row) => toEvent(row) as RestartEntry);
  }

  /**
   * What was reported about the documents of a step: of that step by itself if there is such a report, else together with the steps around
   * it; the newest of each kind.
   */
  async documentsAt(jobId: string, step: number): Promise<DocumentsReport | undefined> {
    let found: DocumentsReport | undefined;
    for (let before = ((await this.lastSequence(jobId)) ?? 0) + 1; ;) {
      const rows = await this.besideSteps(jobId, before, documentsPageEvents);
      for (const row of rows) {
        const { body } = toEvent(row);
        if (body.kind !== 'documents' || step < body.firstStep || body.step < step) continue;
        if (body.isSpike) return body;
        found ??= body;
      }
      if (rows.length < documentsPageEvents) return found;
      before = rows.at(-1)!.sequence;
      // A run may report every step: others get their turn after each page.
      await nextTurn();
    }
  }

  /**
   * Everything that a job's curves are made of, up to a sequence number, the last first, page by page: events, and for long jobs spans
   * instead of step events. A span counts as a whole or not at all, because a run can only go back to where there is an event of another
   * kind.
   * @param stepCount steps per point of the curve: single step events are read only if it is less than a span
   */
  async *readBackwards(
    jobId: string,
    lastSequence: number,
    { stepCount, pageEvents }: { stepCount: number; pageEvents: number },
  ): AsyncGenerator<JobEventBody[], void, undefined> {
    const all = await spansBackwards(this.db, jobId);
    const isCoarse = stepCount >= spanStepCountMin || all.some(({ folded }) => folded === 1);
    const spans = isCoarse ? all.filter((span) => span.last_sequence <= lastSequence) : [];
    const spanned = spans[0]?.last_sequence ?? 0;
    let next = 0;
    /** Spans after a sequence number that were not returned yet. */
    const spansAbove = (sequence: number): JobEventBody[] => {
      const start = next;
      while (next < spans.length && spans[next]!.last_sequence > sequence) next++;
      return spans.slice(start, next).map(({ body }) => toStepBody(body));
    };
    for (const [above, through, isStepRead] of [
      [spanned, lastSequence, true],
      [0, spanned, false],
    ] as const) {
      for (let before = through + 1; before > above + 1;) {
        const rows = isStepRead
          ? await this.db
              .selectFrom('events')
              .selectAll()
              .where('job_id', '=', jobId)
              .where('sequence', '<', before)
              .where('sequence', '>', above)
              .orderBy('sequence', 'desc')
              .limit(pageEvents)
              .execute()
          : await this.besideSteps(jobId, before, pageEvents);
        if (rows.length === 0) break;
        yield rows.flatMap((row) => [...spansAbove(row.sequence), toEvent(row).body]);
        before = rows.at(-1)!.sequence;
      }
    }
    yield spansAbove(0);
  }

  /**
   * The last events before a sequence number that are not steps. Their places are first looked up in the index of these: otherwise SQLite
   * would read the rows of hundreds of thousands of steps in the window of a fast job.
   */
  private async besideSteps(jobId: string, before: number, eventsMax: number) {
    return await this.db
      .selectFrom((places) =>
        places
          .selectFrom('events')
          .select(['job_id', 'sequence'])
          .where('job_id', '=', jobId)
          .where('step', 'is', null)
          .where('sequence', '<', before)
          .orderBy('sequence', 'desc')
          .limit(eventsMax)
          .as('places'),
      )
      .innerJoin('events', (join) =>
        join.onRef('events.job_id', '=', 'places.job_id').onRef('events.sequence', '=', 'places.sequence'),
      )
      .selectAll('events')
      .orderBy('events.sequence', 'desc')
      .execute();
  }

  /** Resolves once the job has an event after the sequence number, does not exist, or the signal aborts. */
  async changedSince(jobId: string, sequence: number, signal: AbortSignal): Promise<void> {
    // Listens before reading the store: what is appended in between wakes us.
    const { promise, end } = this.nextAppend(jobId, signal);
    try {
      const kept = this.recent.after(jobId, sequence, 1);
      if (kept !== undefined) return kept.events.length > 0 ? undefined : await promise;
      const last = await this.together(jobId, async () => await this.lastSequence(jobId));
      if (last === undefined || last > sequence) return;
      await promise;
    } finally {
      end();
    }
  }

  private async lastSequence(jobId: string): Promise<number | undefined> {
    const job = await this.db
      .selectFrom('jobs')
      .select('last_sequence')
      .where('id', '=', jobId)
      .executeTakeFirst();
    return job?.last_sequence;
  }

  /**
   * One read for all who ask the same in one turn of the event loop: a change on another server wakes all watchers of a job at once. Nobody
   * gets the result of a read that had begun before, which may have missed what the caller was woken for.
   */
  private async together<T>(what: string, read: () => Promise<T>): Promise<T> {
    const waiting = this.reads.get(what) as Promise<T> | undefined;
    if (waiting !== undefined) return await waiting;
    const begun = nextTurn().then(async () => {
      this.reads.delete(what);
      return await read();
    });
    this.reads.set(what, begun);
    return await begun;
  }

  /**
   * Listens for jobs that were changed, here or elsewhere, with their states; null means any job. Only a hint: see ChangeFeed. Returns the
   * function that ends it.
   */
  onChanged(listener: (jobId: string | null, state?: string) => void): () => void {
    return this.feed.listen((change) => {
      if (change === null) listener(null);
      else if (change.topic === 'job') listener(change.id, change.state);
    });
  }

  /** Listens to changes made by this process, for its metrics; returns the function that ends it. */
  onAppended(listener: AppendListener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Runs one transaction that changes jobs and announces it after the commit. `work` must not wait for anything but its own statements. */
  async change<T>(work: (change: JobChange) => Promise<T>): Promise<T> {
    let change: JobChange | undefined;
    const result = await this.db.transaction().execute(async (trx) => {
      change = new JobChange(trx, this.now());
      return await work(change);
    });
    for (const { row, events } of change?.touched.values() ?? []) {
      this.recent.append(row.id, events);
      const job = toJob(row);
      for (const listener of this.listeners) listener(job, events);
      this.isAnnouncing = true;
      this.feed.announce({
        topic: 'job',
        id: row.id,
        state: row.state,
        stopRequest: row.stop_request,
        updateNumber: row.update_number,
      });
      this.isAnnouncing = false;
    }
    return result;
  }

  private wake(jobId: string): void {
    for (const wake of this.waiting.get(jobId) ?? []) wake();
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

/** Merges events and spans by number, up to the end of the shorter page; an event that a span stands for was removed meanwhile. */
function inOrder(events: JobEvent[], spans: readonly JobEvent[], countMax: number): JobEvent[] {
  if (spans.length === 0) return events;
  // A full page may be followed by more of its kind.
  const ends = [events, spans].map((page) => (page.length < countMax ? Infinity : page.at(-1)!.sequence));
  const merged: JobEvent[] = [];
  let next = 0;
  for (const event of events) {
    while (next < spans.length && spans[next]!.sequence < event.sequence) merged.push(spans[next++]!);
    const isRemoved = next < spans.length && spans[next]!.firstSequence <= event.sequence;
    if (!isRemoved) merged.push(event);
  }
  return [...merged, ...spans.slice(next)]
    .filter(({ firstSequence }) => firstSequence <= Math.min(...ends))
    .slice(0, countMax);
}
