import { setTimeout as sleep } from 'node:timers/promises';
import type { Transaction } from 'kysely';
import type { Logger } from 'pino';
import type { ChangeFeed } from '../store/changeFeed.js';
import type { Leases } from '../store/leases.js';
import type { Schema } from '../store/schema.js';
import { isStoreBroken } from '../store/storeError.js';
import { tenantOf } from '../store/tenantIds.js';
import { isTerminal, type Job, type JobEvent } from './job.js';
import type { JobJournal } from './jobJournal.js';
import type { JobStore } from './jobStore.js';
import type { JournalReaders, Position } from './journalReaders.js';

/** What became of events. `nothing`: none of them matters; `later`: there is no room for them yet. */
export type Taken =
  | {
      /** What the reader keeps in addition to its position. */
      state: string;
      /** Runs in the transaction that stores the position. */
      work?(trx: Transaction<Schema>): Promise<void>;
      /** Called after the commit. */
      after?(): void;
    }
  | 'nothing'
  | 'later';

/** What a reader does with events, in the order of a job's journal. */
export interface Reading {
  /** Id of the reader's row. */
  id: string;
  /** The tenant whose jobs are read; null for all. */
  tenant: string | null;
  /** Whether it reads step events, too. */
  withSteps: boolean;
  /** Pause between two rounds over the jobs with news, so that many small changes become one. */
  pauseMs: number;
  /**
   * Handles these events, or returns what to do in the transaction that stores that they were read. Anything done outside that transaction
   * may be repeated after a crash. A rejection is retried with growing pauses, which delay no other job.
   */
  take(job: Job, events: readonly JobEvent[], state: string): Promise<Taken>;
}

export interface FollowerParts {
  readers: JournalReaders;
  journal: JobJournal;
  store: JobStore;
  feed: ChangeFeed;
  leases: Leases;
  log: Logger;
  onStoreFailure(error: unknown): void;
}

/** Number of ignored events after which the position is stored all the same. */
const unstoredMax = 10_000;
const eventsPerRead = 256;
const laterMs = 500;
const [retryMs, retryMsMax] = [1000, 60_000];

/** Reads the journals of all jobs for one reader, on the one server that has its lease, from its position in each. */
export class JournalFollower {
  private readonly stopping = new AbortController();
  private readonly waiting = new Set<string>();
  /** Jobs whose events were not taken, until they are tried again. */
  private readonly resting = new Map<string, NodeJS.Timeout>();
  /** How often in a row events were not taken, by job. */
  private readonly failures = new Map<string, number>();
  /** Positions by job; only `stored` survives a crash. */
  private readonly positions = new Map<string, Position & { stored: number }>();
  private isBehind = true;
  private wake: () => void = () => {};
  private work: Promise<void> | undefined;
  private stopListening: (() => void) | undefined;
  private epoch: number | undefined;

  constructor(
    private readonly parts: FollowerParts,
    private readonly reading: Reading,
    /** Called with the epoch when this server begins to read for it, and with null when it stops. */
    private readonly onHeld: (epoch: number | null) => void = () => {},
  ) {}

  start(): void {
    this.stopListening = this.parts.feed.listen((change) => {
      if (change === null) this.isBehind = true;
      else if (change.topic === 'job' && this.concerns(change.id)) this.waiting.add(change.id);
      else return;
      this.wake();
    });
    this.work = this.run();
  }

  async stop(): Promise<void> {
    this.stopListening?.();
    this.stopping.abort();
    this.wake();
    await this.work;
  }

  private concerns(jobId: string): boolean {
    return this.reading.tenant === null || tenantOf(jobId) === this.reading.tenant;
  }

  private async run(): Promise<void> {
    const { readers, leases } = this.parts;
    const { id } = this.reading;
    const { signal } = this.stopping;
    while (!signal.aborted) {
      const epoch = await this.attempt(async () => await readers.claim(id));
      if (epoch === undefined) {
        await this.pause(leases.retryMs ?? retryMs);
        continue;
      }
      const release = leases.hold('journal_readers', id, epoch, () => {
        this.epoch = undefined;
        this.wake();
      });
      this.epoch = epoch;
      this.onHeld(epoch);
      this.positions.clear();
      this.isBehind = true;
      while (!signal.aborted && this.epoch === epoch) await this.round(epoch);
      for (const timer of this.resting.values()) clearTimeout(timer);
      this.resting.clear();
      this.failures.clear();
      release();
      this.onHeld(null);
      await readers.release(id, epoch).catch(() => {}); // if this fails, it is free once the lease has expired
    }
  }

  private async round(epoch: number): Promise<void> {
    const { readers } = this.parts;
    const { id, pauseMs } = this.reading;
    if (this.isBehind) {
      this.isBehind = false;
      const jobs = await this.attempt(async () => await readers.backlog(id));
      if (jobs === undefined) {
        this.isBehind = true;
        return await this.pause(retryMs);
      }
      for (const job of jobs) this.waiting.add(job);
    }
    if (this.waiting.size === 0) {
      // Checked again for what came while the store was read; no other code runs between this check and the wait.
      const isOver = this.stopping.signal.aborted || this.epoch !== epoch;
      if (!isOver && !this.isBehind) await new Promise<void>((resolve) => (this.wake = resolve));
      return;
    }
    let isLater = false;
    for (const jobId of [...this.waiting]) {
      if (this.stopping.signal.aborted || this.epoch !== epoch) return;
      this.waiting.delete(jobId);
      if (this.resting.has(jobId)) continue; // news of it are read after its rest
      const outcome = await this.attempt(async () => await this.read(jobId, epoch));
      if (outcome === undefined) {
        this.rest(jobId);
        continue;
      }
      this.failures.delete(jobId);
      if (outcome === 'read') continue;
      this.waiting.add(jobId);
      isLater ||= outcome === 'later';
    }
    await this.pause(Math.max(pauseMs, isLater ? laterMs : 0));
  }

  /** Tries a job again after a pause that delays no other. */
  private rest(jobId: string): void {
    const failures = this.failures.get(jobId) ?? 0;
    this.failures.set(jobId, failures + 1);
    const resume = (): void => {
      this.resting.delete(jobId);
      this.waiting.add(jobId);
      this.wake();
    };
    this.resting.set(jobId, setTimeout(resume, Math.min(retryMsMax, retryMs * 2 ** failures)));
  }

  /** `read`: up to the end; `more`: there is more. */
  private async read(jobId: string, epoch: number): Promise<'read' | 'more' | 'later'> {
    const { store, journal, readers } = this.parts;
    const { id, withSteps, take } = this.reading;
    const job = await store.find(jobId);
    const stored = job && (this.positions.get(jobId) ?? (await readers.position(id, job)));
    if (job === undefined || stored === undefined) return 'read';
    const position = { stored: stored.sequence, ...stored };
    const { events, through } = withSteps
      ? await this.all(jobId, position.sequence)
      : await journal.noticesAfter(jobId, position.sequence, eventsPerRead);
    if (through === position.sequence) return 'read';
    const result = events.length === 0 ? 'nothing' : await take(job, events, position.state);
    if (result === 'later') return result;
    const next = { sequence: through, state: result === 'nothing' ? position.state : result.state };
    const isEnd = isTerminal(job.state) && through === job.lastSequence;
    const isUnstored = result === 'nothing' && !isEnd && through - position.stored < unstoredMax;
    if (!isUnstored) {
      const work = result === 'nothing' ? undefined : result.work;
      if (!(await readers.advance(id, epoch, jobId, next, work))) {
        this.epoch = undefined;
        return 'read';
      }
      if (result !== 'nothing') result.after?.();
    }
    if (isEnd) this.positions.delete(jobId);
    else this.positions.set(jobId, { ...next, stored: isUnstored ? position.stored : through });
    return isEnd || through >= job.lastSequence ? 'read' : 'more';
  }

  private async all(jobId: string, sequence: number): Promise<{ events: JobEvent[]; through: number }> {
    const { events } = await this.parts.journal.readAfter(jobId, sequence, eventsPerRead);
    return { events, through: events.at(-1)?.sequence ?? sequence };
  }

  /** Undefined if it failed, which is logged. */
  private async attempt<T>(step: () => Promise<T>): Promise<T | undefined> {
    try {
      return await step();
    } catch (error) {
      if (this.stopping.signal.aborted) return undefined;
      this.parts.log.warn(
        { err: error, reader: this.reading.id },
        'Events were not taken; it is tried again',
      );
      if (isStoreBroken(error)) this.parts.onStoreFailure(error);
      return undefined;
    }
  }

  private async pause(ms: number): Promise<void> {
    if (ms > 0) await sleep(ms, undefined, { signal: this.stopping.signal }).catch(() => {});
  }
}
