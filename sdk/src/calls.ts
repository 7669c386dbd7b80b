import {
  ClientError,
  Metadata,
  type CallOptions,
  type ClientMiddleware,
  type ClientMiddlewareCall,
} from 'nice-grpc-common';
import { orAborted, startTimer, timerMsMax, type Aborts } from './aborts.js';
import type { CallHeaders } from './credentials.js';
import { fromClientError, ReloraError } from './errors.js';
import type { Logger } from './logger.js';
import { Patience, type RetryOptions } from './patience.js';
import { checkRequest } from './requestFields.js';

/** Options of this client for a call, in addition to those of gRPC. */
export interface CallExtension {
  deadlineMs?: number;
  /** How long to try again after the first failure; by default until the deadline. */
  unreachableMs?: number;
  /** Called before the call is retried. */
  onRepeat?: () => void;
}

/**
 * Turns every failure into a ReloraError, gives unary calls a deadline, which the server gets, too, and retries them until then if that is
 * safe and may help. The request, including its request_id, stays the same, which makes the retry the same call. Streams are not retried
 * here: their readers know where to resume.
 */
export function callMiddleware(options: {
  deadlineMs: number;
  retries: RetryOptions;
  aborts: Aborts;
  logger: Logger;
  /** Headers that identify the caller. */
  headers: CallHeaders;
  /** Adds to an error that is about the connection to the server. */
  explain: (error: ReloraError) => ReloraError;
}): ClientMiddleware<CallExtension> {
  const { retries, aborts, logger, explain, headers } = options;
  return async function* (
    call,
    { deadlineMs = options.deadlineMs, unreachableMs, onRepeat, ...callOptions },
  ) {
    using stop = aborts.link(callOptions.signal);
    const { signal } = stop;
    if (!call.requestStream) checkRequest(call.method.path, call.request);
    if (call.requestStream || call.responseStream)
      return yield* attempt(
        call,
        { ...callOptions, metadata: await withHeaders(callOptions.metadata, headers, signal), signal },
        explain,
      );

    const method = call.method.path;
    const startMs = performance.now();
    const endsAtMs = startMs + deadlineMs;
    const limit = unreachableMs === undefined ? { deadlineMs, endsAtMs } : { deadlineMs: unreachableMs };
    const patience = new Patience({ ...limit, retries, logger, what: method, signal });
    let last: unknown;
    const timer = startTimer(deadlineMs, () => stop.abort(tooLate(deadlineMs, method, last)));
    try {
      for (;;) {
        const metadata = await withHeaders(callOptions.metadata, headers, signal);
        // The server gives up at the same time.
        if (deadlineMs !== Infinity)
          metadata.set('grpc-timeout', timeoutHeader(endsAtMs - performance.now()));
        try {
          const answer = yield* attempt(call, { ...callOptions, metadata, signal }, explain);
          logger.debug({ method, durationMs: performance.now() - startMs }, `${method} was answered`);
          return answer;
        } catch (error) {
          last = error;
          await patience.pause(error);
          onRepeat?.();
        }
      }
    } finally {
      clearTimeout(timer);
    }
  };
}

/**
 * One attempt. If the signal was aborted, throws its reason; otherwise includes the trailer with the details, which nice-grpc's errors
 * omit.
 */
async function* attempt<Request, Response>(
  call: ClientMiddlewareCall<Request, Response>,
  options: CallOptions & { signal: AbortSignal },
  explain: (error: ReloraError) => ReloraError,
) {
  let trailer: Metadata | undefined;
  const onTrailer = (received: Metadata) => {
    trailer = received;
    options.onTrailer?.(received);
  };
  try {
    return yield* call.next(call.request, { ...options, onTrailer });
  } catch (error) {
    options.signal.throwIfAborted();
    throw error instanceof ClientError ? explain(fromClientError(error, trailer)) : error;
  }
}

/** Metadata of the call takes precedence over headers that the client sends with every call. The token may come from elsewhere, and hang. */
async function withHeaders(
  given: CallOptions['metadata'],
  headers: CallHeaders,
  signal: AbortSignal,
): Promise<Metadata> {
  const metadata = Metadata(given);
  for (const [name, value] of Object.entries(await orAborted(headers(), signal)))
    if (!metadata.has(name)) metadata.set(name, value);
  return metadata;
}

/** At most eight digits are allowed, so a long time is given in seconds. */
function timeoutHeader(leftMs: number): string {
  const wholeMs = Math.min(timerMsMax, Math.max(1, Math.ceil(leftMs)));
  return wholeMs < 1e8 ? `${wholeMs}m` : `${Math.floor(wholeMs / 1000)}S`;
}

function tooLate(deadlineMs: number, method: string, last: unknown): ReloraError {
  const before = last instanceof Error ? `; before that: ${last.message}` : '';
  const detail = { code: 'DEADLINE_EXCEEDED', method } as const;
  return new ReloraError(`No answer within ${deadlineMs} ms${before}`, detail, { cause: last });
}
