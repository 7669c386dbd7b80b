import type { Database } from '../store/database.js';
import type { Job } from './job.js';
import type { JobJournal } from './jobJournal.js';

export interface ControlOptions {
  /** Makes a repeated call return the job without acting again. */
  requestId?: string | null;
  /** Act only if the job still has this version. */
  version?: number | null;
}

/** `notFound`, `wrongState` (with the job, so that the answer can name its state), `changed` (another version), `conflict` (request id used for something else). */
export type ControlResult =
  | { outcome: 'done'; job: Job }
  | { outcome: 'wrongState'; job: Job }
  | { outcome: 'changed'; job: Job }
  | { outcome: 'notFound' }
  | { outcome: 'conflict' };

/**
 * Pauses, resumes and cancels jobs. For a job without a trainer the new state is stored at once; for one with a trainer the
 * wish is stored (`stopRequest`), survives a crash, and becomes a state when the trainer has stopped: see whenSettled.
 */
export class JobControl {
  constructor(
    private readonly db: Database,
    private readonly journal: JobJournal,
  ) {}

  /** queued, starting, running → paused. A paused job is left as it is. */
  async pause(_jobId: string, _options: ControlOptions = {}): Promise<ControlResult> {
    throw new Error('not yet');
  }

  /** paused → queued. */
  async resume(_jobId: string, _options: ControlOptions = {}): Promise<ControlResult> {
    throw new Error('not yet');
  }

  /** Any state that is not terminal → cancelled. A cancelled job is left as it is. */
  async cancel(_jobId: string, _options: ControlOptions = {}): Promise<ControlResult> {
    throw new Error('not yet');
  }

  /** The job once no stop request is open, or as it stands when the signal aborts. */
  async whenSettled(_jobId: string, _signal: AbortSignal): Promise<Job | undefined> {
    throw new Error('not yet');
  }
}
