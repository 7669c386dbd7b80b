import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import { requireRole, type Authenticate, type Principal } from '../access/principal.js';
import type { Role } from '../roles.js';
import type { Config } from '../config.js';
import { ServiceError } from '../errors.js';
import { storageCures, storageFault } from '../store/storageFault.js';
import { isDiskBroken, isDiskFull, isOutOfFiles, isStoreAway } from '../store/storeError.js';
import type { CallContext, Middleware } from './service.js';

/** The first is the outermost. */
export function compose(...middlewares: readonly Middleware[]): Middleware {
  return middlewares.reduceRight((inner, outer) => (call, next) => {
    return outer(call, (context) => inner({ ...call, context }, next));
  });
}

/**
 * Turns every error that is not of the catalog into INTERNAL_ERROR with an id, and logs its stack under that id. The outermost middleware
 * except for metrics.
 */
export function errorMiddleware(log: Logger, config: Pick<Config, 'freeDiskBytesMin'>): Middleware {
  return async function* answerErrors({ method, context }, next) {
    try {
      yield* next(context);
    } catch (error) {
      throw toServiceError(error, context, config, (cause, errorId) =>
        log.error({ err: cause, errorId, method: method.path }, 'A call failed'),
      );
    }
  };
}

function toServiceError(
  error: unknown,
  { signal }: CallContext,
  { freeDiskBytesMin }: Pick<Config, 'freeDiskBytesMin'>,
  report: (cause: unknown, errorId?: string) => void,
): ServiceError {
  // The client has no call any more, whatever failed then; the signal's reason says how the call ended.
  if (signal.aborted && signal.reason instanceof ServiceError) return signal.reason;
  if (error instanceof ServiceError) return error;
  if ((error instanceof Error && error.name === 'AbortError') || signal.aborted)
    return new ServiceError('CALL_CANCELLED', {});
  if (isDiskFull(error)) return new ServiceError('DISK_FULL', { freeBytesMin: freeDiskBytesMin });
  if (isDiskBroken(error)) {
    report(error);
    return new ServiceError('DISK_BROKEN', {});
  }
  if (isOutOfFiles(error)) return new ServiceError('FILES_FULL', {});
  if (isStoreAway(error)) return new ServiceError('STORE_AWAY', {});
  const fault = storageFault(error);
  if (fault?.reason === 'STORAGE_FULL')
    return new ServiceError('DISK_FULL', { freeBytesMin: freeDiskBytesMin });
  if (fault !== undefined)
    return new ServiceError('FOLDER_UNWRITABLE', {
      message: `${fault.message}: ${storageCures[fault.reason]}`,
    });
  const errorId = randomUUID();
  report(error, errorId);
  return new ServiceError('INTERNAL_ERROR', { errorId });
}

/**
 * Ends calls with one request and one response that take longer than a limit, whether or not the client set a deadline, so that half-open
 * calls do not accumulate. The work that they began continues, and the error says so. Streams have no limit, nor have the paths in
 * `endsWithCall`, whose work ends with them.
 */
export function deadlineMiddleware(seconds: number, endsWithCall: ReadonlySet<string>): Middleware {
  return async function* limitTime({ method, context }, next) {
    if (method.requestStream || method.responseStream || endsWithCall.has(method.path))
      return yield* next(context);
    const limit = new AbortController();
    const timer = setTimeout(
      () => limit.abort(new ServiceError('DEADLINE_EXCEEDED', { seconds })),
      seconds * 1000,
    );
    const signal = AbortSignal.any([context.signal, limit.signal]);
    let onAbort = (): void => {};
    const aborted = new Promise<never>((_, reject) => {
      onAbort = () => reject(signal.reason as Error);
      signal.addEventListener('abort', onAbort, { once: true });
    });
    try {
      const { value } = await Promise.race([next({ ...context, signal }).next(), aborted]);
      if (value !== undefined) yield value;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
    }
  };
}

/** Refuses calls with too large metadata; the size is that of the headers as HTTP/2 defines it. */
export function metadataMiddleware(metadataBytesMax: number): Middleware {
  return async function* limitMetadata({ context }, next) {
    let metadataBytes = 0;
    for (const key of Object.keys(context.metadata.getMap())) {
      for (const value of context.metadata.get(key)) metadataBytes += key.length + value.length + 32;
    }
    if (metadataBytes > metadataBytesMax)
      throw new ServiceError('METADATA_TOO_LARGE', { metadataBytes, metadataBytesMax });
    yield* next(context);
  };
}

/**
 * Authenticates the caller before the request is read, and refuses what the caller's role does not allow. `roleOf` returns the lowest role
 * for a path, or null for a method that anybody may call.
 */
export function accessMiddleware(
  authenticate: Authenticate,
  roleOf: (path: string) => Role | null,
): Middleware {
  return async function* checkAccess({ method, context }, next) {
    const { path } = method;
    const role = roleOf(path);
    if (role === null) return yield* next(context);
    const header = (name: string): string | undefined => context.metadata.get(name)[0]?.toString();
    const authorization = header('authorization');
    const certificate = authorization === undefined ? context.certificate() : undefined;
    const caller = await authenticate({ authorization, tenant: header('relora-tenant'), certificate });
    requireRole(caller, role, path.slice(path.lastIndexOf('/') + 1));
    using _rights = whileAllowed(caller, (error) => context.end(error));
    yield* next({ ...context, caller });
  };
}

/** Maximum of setTimeout. */
const timerMsMax = 2 ** 31 - 1;

/** A stream may last for weeks, so it ends when its caller's token expires or is revoked. */
function whileAllowed(
  { expireTimeMs = null, revoked }: Principal,
  end: (error: ServiceError) => void,
): Disposable {
  const onRevoked = (): void => end(revoked!.reason as ServiceError);
  if (revoked?.aborted === true) onRevoked();
  revoked?.addEventListener('abort', onRevoked);
  let timer: NodeJS.Timeout | undefined;
  const expire = (): void => {
    const leftMs = expireTimeMs! - Date.now();
    if (leftMs <= 0) end(new ServiceError('NOT_AUTHENTICATED', { cause: 'its token has expired' }));
    else timer = setTimeout(expire, Math.min(leftMs, timerMsMax)).unref();
  };
  if (expireTimeMs !== null) expire();
  return {
    [Symbol.dispose]() {
      clearTimeout(timer);
      revoked?.removeEventListener('abort', onRevoked);
    },
  };
}
