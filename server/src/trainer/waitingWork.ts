import type { Logger } from 'pino';
import { isDiskFull } from '../store/storeError.js';

/** Wait until a full disk is tried again. */
const fullDiskRetryMs = 5000;

export interface WaitingWorkParts {
  /** Does the next piece that waits in the store; false when there is none. */
  doNext(): Promise<boolean>;
  log: Logger;
  /** For the log: what waits for a full disk, and what cannot be done without the store. */
  texts: { diskIsFull: string; failed: string };
  /** The store failed: see Supervisor. */
  onStoreFailure(error: unknown): void;
}

/** Does work that waits in the store one piece after another, when it is woken. A full disk is tried again by itself. */
export class WaitingWork {
  private readonly stopping = new AbortController();
  private working: Promise<void> | undefined;
  private isWanted = false;
  private retryTimer: NodeJS.Timeout | undefined;

  constructor(private readonly parts: WaitingWorkParts) {}

  /** Aborted when the work is to stop: a piece under way begins anew at the next start. */
  get signal(): AbortSignal {
    return this.stopping.signal;
  }

  wake(): void {
    this.isWanted = true;
    this.working ??= this.doAll()
      .catch((error: unknown) => {
        const { log, texts, onStoreFailure } = this.parts;
        if (isDiskFull(error)) {
          log.error(texts.diskIsFull);
          this.retryTimer = setTimeout(() => this.wake(), fullDiskRetryMs);
          return;
        }
        log.fatal({ err: error }, texts.failed);
        onStoreFailure(error);
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
