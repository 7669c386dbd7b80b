import { randomUUID } from 'node:crypto';
import { ServerError, Status, type CallContext, type ServerMiddleware } from 'nice-grpc';
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { ServiceError } from '../errors.js';
import { isDiskFull } from '../store/storeError.js';
import { encodeStatusDetails } from './statusDetails.js';

/**
 * Gives every error its details and lets nothing else out: what is not of the catalogue becomes INTERNAL_ERROR with an id,
 * under which the log has the stack. The outermost middleware but for metrics.
 */
export function errorMiddleware(log: Logger, config: Pick<Config, 'freeDiskBytesMin'>): ServerMiddleware {
  return async function* answerErrors(call, context) {
    try {
      return yield* call.next(call.request, context);
    } catch (error) {
      const answer = toServiceError(error, context, config, (errorId, cause) =>
        log.error({ err: cause, errorId, method: call.method.path }, 'A call failed'),
      );
      if (!(answer instanceof ServiceError)) throw answer;
      context.trailer.set('grpc-status-details-bin', encodeStatusDetails(answer));
      const { retrySeconds } = answer.entry;
      if (retrySeconds !== undefined)
        context.trailer.set('grpc-retry-pushback-ms', String(retrySeconds * 1000));
      throw answer;
    }
  };
}

function toServiceError(
  error: unknown,
  context: CallContext,
  { freeDiskBytesMin }: Pick<Config, 'freeDiskBytesMin'>,
  report: (errorId: string, cause: unknown) => void,
): ServerError {
  if (error instanceof ServiceError) return error;
  // The client is gone, or its deadline has passed and it was told so: whatever failed then, nobody waits for the answer.
  if ((error instanceof Error && error.name === 'AbortError') || context.signal.aborted)
    return new ServiceError('CALL_CANCELLED', {});
  // From gRPC's own services, such as health for an unknown name.
  if (error instanceof ServerError && error.code !== Status.UNKNOWN) return error;
  if (isDiskFull(error)) return new ServiceError('DISK_FULL', { freeBytesMin: freeDiskBytesMin });
  const errorId = randomUUID();
  report(errorId, error);
  return new ServiceError('INTERNAL_ERROR', { errorId });
}

/**
 * Ends calls with one request and one response that take longer than a limit, whether or not the client set a deadline, so
 * that half-open calls do not pile up. What they began goes on; the answer says so. Streams may last.
 */
export function deadlineMiddleware(seconds: number): ServerMiddleware {
  return async function* limitTime(call, context) {
    if (call.requestStream || call.responseStream) return yield* call.next(call.request, context);
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), seconds * 1000);
    const signal = AbortSignal.any([context.signal, limit.signal]);
    let onAbort = (): void => {};
    const aborted = new Promise<never>((_, reject) => {
      onAbort = () =>
        reject(
          context.signal.aborted
            ? new ServiceError('CALL_CANCELLED', {})
            : new ServiceError('DEADLINE_EXCEEDED', { seconds }),
        );
      signal.addEventListener('abort', onAbort, { once: true });
    });
    try {
      const result = await Promise.race([call.next(call.request, { ...context, signal }).next(), aborted]);
      return result.value;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
    }
  };
}

/** Refuses calls whose metadata is larger than the limit, counted as HTTP/2 counts headers. */
export function metadataMiddleware(metadataBytesMax: number): ServerMiddleware {
  return async function* limitMetadata(call, context) {
    let metadataBytes = 0;
    for (const [key, values] of context.metadata) {
      for (const value of values) metadataBytes += key.length + value.length + 32;
    }
    if (metadataBytes > metadataBytesMax)
      throw new ServiceError('METADATA_TOO_LARGE', { metadataBytes, metadataBytesMax });
    return yield* call.next(call.request, context);
  };
}
