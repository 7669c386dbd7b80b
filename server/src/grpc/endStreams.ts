import type { ServerMiddleware } from 'nice-grpc';
import { ServiceError } from '../errors.js';

/**
 * Ends the streams of gRPC's own services, health and reflection, when the server stops: they know nothing of it and would
 * hold the drain up to its limit. What they have to say at that moment, NOT_SERVING, is still sent.
 */
export function endStreamsMiddleware(stopping: AbortSignal): ServerMiddleware {
  return async function* endStreams(call, context) {
    if (!call.responseStream || !call.method.path.startsWith('/grpc.'))
      return yield* call.next(call.request, context);
    const stream = call.next(call.request, context);
    let onStop = (): void => {};
    const stopped = new Promise<never>((_, reject) => {
      // A turn of the event loop later, so that an answer that is on its way goes first.
      onStop = () => setImmediate(() => reject(new ServiceError('SERVER_STOPPING', {})));
    });
    // It is only looked at while the stream is read.
    stopped.catch(() => {});
    stopping.addEventListener('abort', onStop);
    if (stopping.aborted) onStop();
    try {
      for (;;) {
        const result = await Promise.race([stream.next(), stopped]);
        if (result.done === true) return;
        yield result.value;
      }
    } finally {
      stopping.removeEventListener('abort', onStop);
      // Not awaited: it ends once the message that it waits for comes or the call is gone.
      void stream.return().catch(() => {});
    }
  };
}
