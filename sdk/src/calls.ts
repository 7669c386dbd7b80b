import {
  ClientError,
  Metadata,
  type CallOptions,
  type ClientMiddleware,
  type ClientMiddlewareCall,
} from 'nice-grpc-common';
import { fromClientError, ReloraError } from './errors.js';

export interface RetryOptions {
  /** Tries of one call without any progress, the first included; 1 turns retries off. */
  attemptsMax: number;
  initialDelayMs: number;
  maxDelayMs: number;
  /** Told before each wait, for logs. */
  onRetry?: (error: ReloraError, delayMs: number) => void;
}

export const defaultRetries: RetryOptions = { attemptsMax: 5, initialDelayMs: 100, maxDelayMs: 5000 };

/**
 * Turns every failure into a ReloraError, gives unary calls a deadline, which the server is told, and repeats them when
 * that is safe and may help. The request, and so its request_id, stays the same, which makes a repeated call the same
 * call. Streams are not repeated here: who reads them knows from where to go on. `closing` ends every call with its reason.
 */
export function callMiddleware(options: {
  deadlineMs: number;
  retries: RetryOptions;
  closing: AbortSignal;
}): ClientMiddleware {
  const { deadlineMs, retries, closing } = options;
  return async function* (call, callOptions) {
    using stop = new LinkedAbort(closing, callOptions.signal);
    if (call.requestStream || call.responseStream) return yield* attempt(call, callOptions, stop.signal);

    const endsAt = Date.now() + deadlineMs;
    const method = call.method.path;
    const timer = setTimeout(() => stop.abort(tooLate(deadlineMs, method)), deadlineMs);
    try {
      for (let attempts = 1; ; attempts++) {
        const metadata = Metadata(callOptions.metadata);
        // The server gives up at the same time; the header holds at most eight digits.
        metadata.set('grpc-timeout', `${Math.min(99_999_999, Math.max(1, endsAt - Date.now()))}m`);
        try {
          return yield* attempt(call, { ...callOptions, metadata }, stop.signal);
        } catch (error) {
          const delayMs = retryDelayMs(error, attempts, retries);
          if (delayMs === null || Date.now() + delayMs >= endsAt) throw error;
          await sleep(delayMs, stop.signal);
        }
      }
    } finally {
      clearTimeout(timer);
    }
  };
}

/**
 * How long to wait before the next attempt; null when there should be none: only UNAVAILABLE, broken connections and
 * RESOURCE_EXHAUSTED with advice when to come back are worth one.
 */
export function retryDelayMs(error: unknown, attempts: number, retries: RetryOptions): number | null {
  if (!(error instanceof ReloraError) || attempts >= retries.attemptsMax) return null;
  const isBusy = error.code === 'RESOURCE_EXHAUSTED' && error.retryDelayMs !== undefined;
  if (!isBusy && !isConnectionFault(error)) return null;
  const delayMs = (error.retryDelayMs ?? 0) + backoffMs(attempts, retries);
  retries.onRetry?.(error, delayMs);
  return delayMs;
}

/**
 * Whether the way to the server broke rather than the server refused. A stream that is reset arrives as INTERNAL, one that
 * a proxy answers as UNKNOWN; errors of the server itself always have a reason.
 */
export function isConnectionFault({ code, reason }: ReloraError): boolean {
  return code === 'UNAVAILABLE' || ((code === 'INTERNAL' || code === 'UNKNOWN') && reason === '');
}

/** Doubles with each attempt, from 1; jitter keeps many clients from coming back at the same instant. */
export function backoffMs(attempts: number, { initialDelayMs, maxDelayMs }: RetryOptions): number {
  return Math.min(maxDelayMs, initialDelayMs * 2 ** (attempts - 1)) * (0.5 + Math.random() / 2);
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

/**
 * A signal that aborts with the first of others, or by itself. Lets go of the others when disposed, so that many calls
 * under one long-lived signal leave nothing behind on it.
 */
export class LinkedAbort implements Disposable {
  private readonly controller = new AbortController();
  private readonly links: (() => void)[] = [];
  readonly signal: AbortSignal = this.controller.signal;

  constructor(...others: (AbortSignal | undefined)[]) {
    for (const other of others) {
      if (other === undefined) continue;
      const onAbort = () => this.abort(other.reason);
      if (other.aborted) onAbort();
      other.addEventListener('abort', onAbort, { once: true });
      this.links.push(() => other.removeEventListener('abort', onAbort));
    }
  }

  abort(reason: unknown): void {
    this.controller.abort(reason);
  }

  [Symbol.dispose](): void {
    for (const unlink of this.links) unlink();
  }
}

/** One try. What aborted the signal is what is thrown; nice-grpc's errors leave out the trailer, where the details are. */
async function* attempt<Request, Response>(
  call: ClientMiddlewareCall<Request, Response>,
  options: CallOptions,
  signal: AbortSignal,
) {
  let trailer: Metadata | undefined;
  const onTrailer = (received: Metadata) => {
    trailer = received;
    options.onTrailer?.(received);
  };
  try {
    return yield* call.next(call.request, { ...options, signal, onTrailer });
  } catch (error) {
    signal.throwIfAborted();
    throw error instanceof ClientError ? fromClientError(error, trailer) : error;
  }
}

function tooLate(deadlineMs: number, method: string): ReloraError {
  return new ReloraError(`No answer within ${deadlineMs} ms`, { code: 'DEADLINE_EXCEEDED', method });
}
