import type { Database } from '../store/database.js';
import type { Job, JobEvent } from './job.js';

/** Called after a commit with the job as it now stands and the events that were appended. Must not throw. */
export type AppendListener = (job: Job, events: JobEvent[]) => void;

/**
 * The events of all jobs: sequence numbers 1, 2, 3 … without gaps within a job, each taken in the transaction that makes
 * the change it tells of. An event that a listener or reader has seen is on the disk.
 */
export class JobJournal {
  constructor(
    private readonly db: Database,
    private readonly options: { eventsMax: number },
  ) {}

  /** Events above a sequence number, oldest first; isComplete when the job's final event is among or before them. */
  async readAfter(_jobId: string, _sequence: number, _eventsMax = 256): Promise<{ events: JobEvent[]; isComplete: boolean }> {
    throw new Error('not yet');
  }

  /** Resolves once the job has an event above the sequence number, or when the signal aborts. */
  async changedSince(_jobId: string, _sequence: number, _signal: AbortSignal): Promise<void> {
    throw new Error('not yet');
  }

  /** Listens to every append of every job, for metrics and for the supervisor; returns the function that ends it. */
  onAppended(_listener: AppendListener): () => void {
    throw new Error('not yet');
  }
}
