import type { Job, JobEvent } from '../jobs/job.js';

/** Where curves are shown beside the server's own page. */
export interface Tracker {
  readonly name: 'tensorboard' | 'mlflow';
  /**
   * Writes the events of a job that come next, and resolves with what is to be kept beside the place in the journal. It may be called
   * again with the same events and the same state after a crash, and then writes none of them twice.
   */
  write(job: Job, events: readonly JobEvent[], state: string, signal: AbortSignal): Promise<string>;
}
