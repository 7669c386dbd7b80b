import type { StopRequest } from './schema.js';

/** What was changed, and the parts of it that decide who has to act. Sent to other servers: small, and without content. */
export type Change =
  | { topic: 'job'; id: string; state: string; stopRequest: StopRequest | null; updateNumber: number }
  /** An artifact is pending, or was deleted. */
  | { topic: 'artifact'; id: string }
  /** A data set waits to be prepared, or was deleted. */
  | { topic: 'dataset'; id: string }
  /** A webhook was created or deleted, or its dead letters are to be sent again. */
  | { topic: 'webhook'; id: string };

/**
 * How the parts of a server, and the servers of a store, are notified of commits. A notification is a hint: it may come twice or not at
 * all. So a listener reads the store for the truth, and reads everything again when it gets null, which comes regularly if changes can get
 * lost.
 */
export interface ChangeFeed {
  /** Call after the commit. */
  announce(change: Change): void;
  /**
   * The listener is called for every change, made here or elsewhere, and with null if changes may have been missed; it must not throw.
   * Returns the function that ends it.
   */
  listen(listener: (change: Change | null) => void): () => void;
  close(): Promise<void>;
}

/** The feed of a store that only one process uses: nothing gets lost. */
export class LocalFeed implements ChangeFeed {
  private readonly listeners = new Set<(change: Change | null) => void>();

  announce(change: Change | null): void {
    for (const listener of this.listeners) listener(change);
  }

  listen(listener: (change: Change | null) => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  async close(): Promise<void> {}
}
