import { ClientError, Metadata, Status, type CallOptions, type ClientMiddleware } from 'nice-grpc-common';
import { fromClientError, ReloraError } from './errors.js';

export interface RetryOptions {
  /** Tries of one call, the first included; 1 turns retries off. */
  attemptsMax: number;
  initialDelayMs: number;
  maxDelayMs: number;
}

export const defaultRetries: RetryOptions = { attemptsMax: 5, initialDelayMs: 100, maxDelayMs: 5000 };

/**
 * Turns every failure into a ReloraError, gives unary calls a deadline and repeats them when that is safe and may help:
 * UNAVAILABLE, and RESOURCE_EXHAUSTED when the server says how long to wait. The request, and so its request_id, stays
 * the same, which makes a repeated call the same call. Streams are not repeated here: who reads them knows from where to go on.
 */
export function callMiddleware(options: { deadlineMs: number; retries: RetryOptions }): ClientMiddleware {
  return async function* (call, callOptions) {
    if (call.requestStream || call.responseStream) {
      const trailers = new TrailerCatcher(callOptions);
      try {
        return yield* call.next(call.request, trailers.options);
      } catch (error) {
        throw translate(error, trailers, callOptions.signal);
      }
    }

    const deadline = AbortSignal.timeout(options.deadlineMs);
    const signal = callOptions.signal ? AbortSignal.any([callOptions.signal, deadline]) : deadline;
    for (let attempt = 1; ; attempt++) {
      const trailers = new TrailerCatcher({ ...callOptions, signal });
      try {
        return yield* call.next(call.request, trailers.options);
      } catch (cause) {
        callOptions.signal?.throwIfAborted();
        if (deadline.aborted) {
          throw new ReloraError(`No answer within ${options.deadlineMs} ms`, { code: 'DEADLINE_EXCEEDED', method: call.method.path }, { cause });
        }
        const error = translate(cause, trailers, callOptions.signal);
        const delayMs = retryDelayMs(error, attempt, options.retries);
        if (delayMs === null) throw error;
        await sleep(delayMs, signal).catch(() => {
          callOptions.signal?.throwIfAborted();
          throw error; // the deadline would pass while waiting
        });
      }
    }
  };
}

/** How long to wait before the next attempt; null when there should be none. */
export function retryDelayMs(error: unknown, attempt: number, retries: RetryOptions): number | null {
  if (!(error instanceof ReloraError) || attempt >= retries.attemptsMax) return null;
  const mayHelp = error.code === 'UNAVAILABLE' || (error.code === 'RESOURCE_EXHAUSTED' && error.retryDelayMs !== undefined);
  if (!mayHelp) return null;
  const backoff = Math.min(retries.maxDelayMs, retries.initialDelayMs * 2 ** (attempt - 1));
  // Jitter keeps many clients from coming back at the same instant.
  return (error.retryDelayMs ?? 0) + backoff * (0.5 + Math.random() / 2);
}

/** Waits; rejects with the signal's reason when it aborts. */
export function sleep(delayMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason as Error);
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal!.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, delayMs);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** nice-grpc's errors leave the trailer out, where the details are. */
class TrailerCatcher {
  trailer: Metadata | undefined;
  readonly options: CallOptions;

  constructor(options: CallOptions) {
    this.options = {
      ...options,
      onTrailer: (trailer) => {
        this.trailer = trailer;
        options.onTrailer?.(trailer);
      },
    };
  }
}

function translate(error: unknown, trailers: TrailerCatcher, signal: AbortSignal | undefined): unknown {
  signal?.throwIfAborted();
  if (error instanceof ClientError) return fromClientError(error, trailers.trailer);
  if (error instanceof Error && error.name === 'AbortError') return new ReloraError('The call was aborted', { code: Status[Status.CANCELLED] as 'CANCELLED' }, { cause: error });
  return error;
}
