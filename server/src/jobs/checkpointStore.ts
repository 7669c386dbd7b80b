import type { Database } from '../store/database.js';

/** A checkpoint that was acknowledged: complete and synced in its folder before its row was stored. */
export interface Checkpoint {
  jobId: string;
  attempt: number;
  /** Step that a run resumes with. */
  step: number;
  /** Absolute. */
  folder: string;
  sizeBytes: number;
  manifestSha256: string;
  createTimeMs: number;
}

/** Rows of checkpoints. The row is the truth: a folder without one does not count. */
export class CheckpointStore {
  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
  ) {}

  /** Usable checkpoints of a job, newest first. */
  async list(_jobId: string): Promise<Checkpoint[]> {
    throw new Error('not yet');
  }

  async newest(_jobId: string): Promise<Checkpoint | undefined> {
    throw new Error('not yet');
  }
}
