import { ServerError, Status, type ServerMiddleware } from 'nice-grpc';
import type { Metrics } from './metrics.js';

/** What a service definition of the contract tells here. */
export interface CountedService {
  readonly fullName: string;
  readonly methods: Readonly<Record<string, { readonly name: string }>>;
}

/**
 * Counts calls by service, method and status code, from 0 on for every method of the services. The outermost middleware:
 * it sees the code that the client gets. Unknown methods never come here, so labels come from a closed set.
 */
export function rpcMetricsMiddleware(
  metrics: Metrics,
  services: readonly CountedService[],
): ServerMiddleware {
  for (const { fullName: service, methods } of services) {
    for (const { name: method } of Object.values(methods)) {
      metrics.rpcStarted.inc({ service, method }, 0);
      metrics.rpcHandled.inc({ service, method, code: 'OK' }, 0);
      metrics.rpcDuration.zero({ service, method });
    }
  }
  return async function* countCalls(call, context) {
    const [, service = '', method = ''] = call.method.path.split('/');
    const labels = { service, method };
    metrics.rpcStarted.inc(labels);
    const endTimer = metrics.rpcDuration.startTimer(labels);
    // What stands when a stream is left in its middle, because the client went away.
    let code: Status = Status.CANCELLED;
    try {
      const result = yield* call.next(call.request, context);
      code = Status.OK;
      return result;
    } catch (error) {
      if (error instanceof ServerError) code = error.code;
      else if (!context.signal.aborted) code = Status.UNKNOWN;
      throw error;
    } finally {
      metrics.rpcHandled.inc({ ...labels, code: Status[code] });
      endTimer();
    }
  };
}
