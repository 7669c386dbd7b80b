import type { Logger } from 'pino';
import type { ArtifactStore } from '../artifacts/artifactStore.js';
import type { Config } from '../config.js';
import type { DatasetStore } from '../datasets/datasetStore.js';
import type { CheckpointStore } from '../jobs/checkpointStore.js';
import type { JobJournal } from '../jobs/jobJournal.js';
import type { JobQueue } from '../jobs/jobQueue.js';
import type { Database } from '../store/database.js';

export interface SupervisorParts {
  config: Config;
  db: Database;
  queue: JobQueue;
  journal: JobJournal;
  checkpoints: CheckpointStore;
  artifacts: ArtifactStore;
  datasets: DatasetStore;
  log: Logger;
}

/** How a trainer process ended, for metrics. */
export interface TrainerExit {
  jobId: string;
  attempt: number;
  outcome: 'succeeded' | 'stopped' | 'failed' | 'crashed';
}

/** Keeps the slots busy: one trainer process for each running job, watched, fenced by its attempt, and replaced after a crash. */
export class Supervisor {
  constructor(private readonly parts: SupervisorParts) {}

  /** Puts jobs that a dead server left behind back into the queue, clears their leftovers, and begins to fill the slots. */
  async start(): Promise<void> {
    throw new Error('not yet');
  }

  get slotCount(): number {
    throw new Error('not yet');
  }

  get runningCount(): number {
    throw new Error('not yet');
  }

  /** Returns the function that ends it. */
  onExit(_listener: (exit: TrainerExit) => void): () => void {
    throw new Error('not yet');
  }

  /** Claims no more, has every trainer save a checkpoint and stop, and kills what has not stopped within the time. Their jobs are queued. */
  async stop(_timeoutMs: number): Promise<void> {
    throw new Error('not yet');
  }
}
