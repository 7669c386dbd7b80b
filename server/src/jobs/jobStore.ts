import type { Database } from '../store/database.js';
import type { Job, JobState } from './job.js';

/** Place in a list of jobs, for the next page: the last job of the page before. */
export interface JobCursor {
  createTimeMs: number;
  id: string;
}

export interface JobFilter {
  /** Empty for all. */
  states: JobState[];
  labels: Record<string, string>;
  order: 'newestFirst' | 'oldestFirst';
  after: JobCursor | null;
  jobsMax: number;
}

/** Reads jobs. Changes are made by JobQueue, JobControl and the supervisor. */
export class JobStore {
  constructor(private readonly db: Database) {}

  async find(_jobId: string): Promise<Job | undefined> {
    throw new Error('not yet');
  }

  /** One page of jobs; `next` is null at the end. */
  async list(_filter: JobFilter): Promise<{ jobs: Job[]; next: JobCursor | null }> {
    throw new Error('not yet');
  }

  async countByState(): Promise<Record<JobState, number>> {
    throw new Error('not yet');
  }
}
