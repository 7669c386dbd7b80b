import { ReloraError } from './errors.js';

/**
 * The ways in which a call of this client is aborted: by its caller's signal, or because the client was closed. However many calls share a
 * signal, this client has only one listener on it; Node reports more than ten as a leak.
 */
export class Aborts {
  private readonly followers = new WeakMap<AbortSignal, Set<LinkedAbort>>();
  private readonly closing = new AbortController();

  /** A signal that aborts with the caller's signal, or with the end of this client. Dispose it when the call is over. */
  link(signal?: AbortSignal): LinkedAbort {
    const followed = signal === undefined ? [this.closing.signal] : [this.closing.signal, signal];
    const link = new LinkedAbort(() => {
      for (const each of followed) this.followers.get(each)!.delete(link);
    });
    for (const each of followed) this.follow(each, link);
    return link;
  }

  /** Aborts all calls, present and future. */
  close(): void {
    this.closing.abort(new ReloraError('The client was closed', { code: 'CANCELLED' }));
  }

  private follow(signal: AbortSignal, link: LinkedAbort): void {
    let links = this.followers.get(signal);
    if (links === undefined) {
      const found = (links = new Set());
      this.followers.set(signal, found);
      const onAbort = () => {
        for (const each of found) each.abort(signal.reason);
      };
      signal.addEventListener('abort', onAbort, { once: true });
    }
    links.add(link);
    if (signal.aborted) link.abort(signal.reason);
  }
}

/** The signal of one call. Its reason is always a ReloraError, which the call throws. */
export class LinkedAbort implements Disposable {
  private readonly controller = new AbortController();
  readonly signal: AbortSignal = this.controller.signal;

  constructor(private readonly unlink: () => void = () => {}) {}

  abort(reason: unknown): void {
    this.controller.abort(reason instanceof ReloraError ? reason : aborted(reason));
  }

  [Symbol.dispose](): void {
    this.unlink();
  }
}

/** Waits; rejects with the signal's reason when it aborts. */
export function sleep(delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason as Error);
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', onAbort);
      resolve();
    }, delayMs);
    signal.addEventListener('abort', onAbort, { once: true });
  });
}

/** The value of a promise; rejects with the signal's reason if it aborts before. */
export function orAborted<T>(waiting: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason as Error);
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) onAbort();
    void waiting.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

/** Node, and so a server in it, runs a longer timer at once. */
export const timerMsMax = 2 ** 31 - 1;

/** A timer that ends after `timerMsMax` at the latest, which is 24 days; none for Infinity. */
export function startTimer(delayMs: number, onEnd: () => void): NodeJS.Timeout | undefined {
  return delayMs === Infinity ? undefined : setTimeout(onEnd, Math.min(delayMs, timerMsMax));
}

function aborted(reason: unknown): ReloraError {
  const why = reason instanceof Error ? reason.message : String(reason);
  return new ReloraError(`The call was aborted: ${why}`, { code: 'CANCELLED' }, { cause: reason });
}
