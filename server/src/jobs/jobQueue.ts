import type { RunSpec } from '@relora/engine/plan';
import type { Database } from '../store/database.js';
import type { Job } from './job.js';
import type { JobJournal } from './jobJournal.js';

export interface NewJob {
  /** Null: the queue makes one that sorts by time. */
  jobId: string | null;
  displayName: string;
  labels: Record<string, string>;
  spec: RunSpec;
  /** Makes a repeated submit return the first job. */
  requestId: string | null;
  /** SHA-256 of everything that was asked for (as the client sent it): the same request id with another digest is a conflict. */
  requestDigest: string;
}

/** `conflict`: the request id was used for something else. `taken`: the job id exists. `full`: no place in the queue. */
export type Submission = { job: Job; isRepeated: boolean } | 'full' | 'taken' | 'conflict';

/** Jobs that wait for a slot: rows of the jobs table in the state queued, highest priority first, then oldest first. */
export class JobQueue {
  constructor(
    private readonly db: Database,
    private readonly journal: JobJournal,
    private readonly options: { jobsMax: number },
  ) {}

  /** Stores a job and queues it; when this resolves the job survives any crash. */
  async submit(_job: NewJob): Promise<Submission> {
    throw new Error('not yet');
  }

  /** Takes the first job that may start: it is `starting` with a new attempt. */
  async claimNext(): Promise<Job | undefined> {
    throw new Error('not yet');
  }
}
