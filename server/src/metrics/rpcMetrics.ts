import { ServerError, Status, type ServerMiddleware } from 'nice-grpc';
import type { Metrics } from './metrics.js';

/** Counts and times every call by service, method and code. The outermost middleware, so that it sees the final code. */
export function rpcMetricsMiddleware(metrics: Metrics): ServerMiddleware {
  return async function* countCalls(call, context) {
    // `/relora.v1.TrainingService/CreateJob`; only methods of our services come here, so the labels are a closed set.
    const [, service = '', method = ''] = call.method.path.split('/');
    const labels = { service, method };
    const beganMs = performance.now();
    metrics.rpcStarted.inc(labels);
    // Left as it is when the client goes away: the generator is then ended without an error.
    let code: Status = Status.CANCELLED;
    try {
      const result = yield* call.next(call.request, context);
      code = Status.OK;
      return result;
    } catch (error) {
      code = error instanceof ServerError ? error.code : context.signal.aborted ? Status.CANCELLED : Status.UNKNOWN;
      throw error;
    } finally {
      metrics.rpcHandled.inc({ ...labels, code: Status[code] });
      metrics.rpcDuration.observe(labels, (performance.now() - beganMs) / 1000);
    }
  };
}
