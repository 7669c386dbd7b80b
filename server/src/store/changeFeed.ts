import type { StopRequest } from './schema.js';

/** What was changed, and what of it decides who has to act. Sent to other servers: small, and without content. */
export type Change =
  | { topic: 'job'; id: string; state: string; stopRequest: StopRequest | null; updateNumber: number }
  /** An artifact is pending, or was deleted. */
  | { topic: 'artifact'; id: string }
  /** A data set waits for its preparation, or was deleted. */
  | { topic: 'dataset'; id: string }
  /** A webhook was made or deleted, or dead letters of one are to be sent again. */
  | { topic: 'webhook'; id: string };

/**
 * How the parts of a server, and the servers of a store, hear of what was committed. It is a hint: a change may be heard twice
 * or not at all. So whoever listens reads the store for what counts, and looks again when it hears null, which comes now and
 * then where changes can get lost.
 */
export interface ChangeFeed {
  /** Called after the commit. */
  announce(change: Change): void;
  /** Calls for every change, made here or elsewhere, and with null for whatever was missed; returns the function that ends it. Must not throw. */
  listen(listener: (change: Change | null) => void): () => void;
  close(): Promise<void>;
}

/** The feed of a store that one process has alone: nothing gets lost. */
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
