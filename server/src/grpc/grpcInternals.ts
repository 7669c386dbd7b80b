import type { Http2Server, ServerHttp2Stream } from 'node:http2';
import type { Server, ServerInterceptor } from '@grpc/grpc-js';

/**
 * Everything that we use of grpc-js beyond its public interface, which has no way to observe frames, to answer calls of methods that are
 * not registered (interceptors are not called for them), to reset a stream, or to write several messages at once. If a version of grpc-js
 * lacks one of these, the functions here throw an error that names it.
 */

/** The HTTP/2 servers that grpc-js uses. */
export function serversOf(server: Server): Http2Server[] {
  const { http2Servers } = server as unknown as { http2Servers?: unknown };
  if (!(http2Servers instanceof Map) || http2Servers.size === 0) throw missing('its servers of HTTP/2');
  return [...(http2Servers as Map<Http2Server, unknown>).keys()];
}

/** The table of methods by path, where grpc-js looks before every call. */
export function handlersOf(server: Server): Map<string, unknown> {
  const { handlers } = server as unknown as { handlers?: unknown };
  if (!(handlers instanceof Map)) throw missing('its table of methods');
  return handlers as Map<string, unknown>;
}

/** The HTTP/2 stream of a call. */
export function streamOf(transport: Parameters<ServerInterceptor>[1]): ServerHttp2Stream {
  let call: { nextCall?: object; stream?: ServerHttp2Stream } = transport as object;
  while (call.nextCall !== undefined) call = call.nextCall;
  if (typeof call.stream?.close !== 'function') throw missing("a call's stream of HTTP/2");
  return call.stream;
}

function missing(what: string): Error {
  return new Error(`This version of @grpc/grpc-js no longer has ${what} where it was`);
}
