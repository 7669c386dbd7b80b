import type { Logger } from 'pino';
import { isPassing, isStoreBroken } from '../store/storeError.js';

/** Pause before retrying after an error: a full disk, an unreachable database, or a fault of ours. */
const retryMs = 5000;

export interface WaitingWorkParts {
  /** Does the next piece of work in the store; false if there is none. */
  doNext(): Promise<boolean>;
  log: Logger;
  /** For the log: what kind of work it is. */
  name: string;
  /** The store failed: see Supervisor. */
  onStoreFailure(error: unknown): void;
}

/**
 * Does work from the store, one piece after another, when it is woken. A piece that fails records that in its own row. Other errors come
 * from the store, or are faults of ours, and are retried: only a broken store ends the server.
 */
export class WaitingWork {
  private readonly stopping = new AbortController();
  private working: Promise<void> | undefined;
  private isWanted = false;
  private retryTimer: NodeJS.Timeout | undefined;

  constructor(private readonly parts: WaitingWorkParts) {}

  /** Aborted when the work should stop: the current piece begins again at the next start. */
  get signal(): AbortSignal {
    return this.stopping.signal;
  }

  wake(): void {
    this.isWanted = true;
    this.working ??= this.doAll()
      .catch((error: unknown) => {
        const { log, name, onStoreFailure } = this.parts;
        if (isStoreBroken(error)) {
          log.fatal({ err: error }, `${name} cannot continue: the store is broken`);
          return onStoreFailure(error);
        }
        log.error(
          { err: error },
          `${name} wait${isPassing(error) ? ': the disk is full, or the database is away' : ''}`,
        );
        this.retryTimer = setTimeout(() => this.wake(), retryMs);
      })
      .finally(() => {
        this.working = undefined;
        if (this.isWanted && !this.signal.aborted) this.wake();
      });
  }

  async stop(): Promise<void> {
    this.stopping.abort();
    clearTimeout(this.retryTimer);
    await this.working;
  }

  private async doAll(): Promise<void> {
    this.isWanted = false;
    while (!this.signal.aborted && (await this.parts.doNext()));
  }
}
