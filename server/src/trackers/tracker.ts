import type { Job, JobEvent } from '../jobs/job.js';

/** Another tool that shows the curves, in addition to the server's own page. */
export interface Tracker {
  readonly name: 'tensorboard' | 'mlflow';
  /**
   * Writes the next events of a job, and resolves with the state to store next to the position in the journal. After a crash it may be
   * called again with the same events and the same state, and must not write anything twice.
   */
  write(job: Job, events: readonly JobEvent[], state: string, signal: AbortSignal): Promise<string>;
}
