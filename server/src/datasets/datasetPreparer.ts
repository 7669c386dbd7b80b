import type { Logger } from 'pino';
import type { TaskRunner } from '../trainer/taskRunner.js';
import type { DatasetStore } from './datasetStore.js';

/** Prepares data sets one after another in a child process. After a crash of either it begins the data set anew. */
export class DatasetPreparer {
  constructor(
    private readonly store: DatasetStore,
    private readonly tasks: TaskRunner,
    private readonly log: Logger,
  ) {}

  /** Takes up what is `preparing`, and from now on whatever becomes it. */
  start(): void {
    throw new Error('not yet');
  }

  /** Stops the present preparation; it begins anew at the next start. */
  async stop(): Promise<void> {
    throw new Error('not yet');
  }
}
