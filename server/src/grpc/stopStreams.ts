import type { ServerMiddleware } from 'nice-grpc';
import { ServiceError } from '../errors.js';

/** Time for a watch of health to hear NOT_SERVING before its stream ends. */
const farewellMs = 100;

/**
 * Ends the streams of gRPC's own services when the server stops. They know nothing of it, and clients hold them open as
 * long as they live, so that the drain would always take its whole time.
 */
export function stopStreamsMiddleware(stopping: AbortSignal): ServerMiddleware {
  return async function* endWithServer(call, context) {
    if (!call.responseStream) return yield* call.next(call.request, context);
    let timer: NodeJS.Timeout | undefined;
    let onStop = (): void => {};
    const stopped = new Promise<never>((_, reject) => {
      onStop = () => {
        timer = setTimeout(() => reject(new ServiceError('SERVER_STOPPING', {})), farewellMs);
      };
    });
    stopping.addEventListener('abort', onStop, { once: true });
    if (stopping.aborted) onStop();
    const responses = call.next(call.request, context);
    try {
      for (;;) {
        const response = await Promise.race([responses.next(), stopped]);
        if (response.done === true) return;
        yield response.value;
      }
    } finally {
      stopping.removeEventListener('abort', onStop);
      clearTimeout(timer);
      // Not awaited: a handler that waits for its client would not end before the client does.
      void responses.return(undefined).catch(() => {});
    }
  };
}
