import { status as Status } from '@grpc/grpc-js';
import { ServiceError } from '../errors.js';
import type { Middleware } from './service.js';
import type { Metrics } from '../metrics/metrics.js';

/** The part of a service definition that is used here. */
export interface CountedService {
  readonly fullName: string;
  readonly methods: Readonly<Record<string, { readonly name: string }>>;
}

/**
 * Counts calls by service, method and status code, beginning with 0 for every method. The outermost middleware, so it sees the code that
 * the client gets. Calls of unknown methods count together, whatever their paths, so the set of labels is closed.
 */
export function rpcMetricsMiddleware(metrics: Metrics, services: readonly CountedService[]): Middleware {
  for (const { fullName: service, methods } of services) {
    for (const { name: method } of Object.values(methods)) {
      metrics.rpcStarted.inc({ service, method }, 0);
      // Begins with 0, so that the first error of a method is an increase.
      for (const code of ['OK', 'INTERNAL']) metrics.rpcHandled.inc({ service, method, code }, 0);
      metrics.rpcDuration.zero({ service, method });
    }
  }
  return async function* countCalls({ method: { path, isUnknown }, context }, next) {
    const [, service = '', method = ''] = isUnknown ? ['', 'unknown', 'unknown'] : path.split('/');
    const labels = { service, method };
    metrics.rpcStarted.inc(labels);
    const endTimer = metrics.rpcDuration.startTimer(labels);
    // The code if the stream is abandoned because the client disconnected.
    let code = Status.CANCELLED;
    try {
      yield* next(context);
      code = Status.OK;
    } catch (error) {
      if (error instanceof ServiceError) code = error.code;
      else if (!context.signal.aborted) code = Status.UNKNOWN;
      throw error;
    } finally {
      metrics.rpcHandled.inc({ ...labels, code: Status[code] });
      endTimer();
    }
  };
}
