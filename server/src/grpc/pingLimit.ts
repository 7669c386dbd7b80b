import type { Http2Server, ServerHttp2Session } from 'node:http2';
import type { Server } from '@grpc/grpc-js';

/** ENHANCE_YOUR_CALM of HTTP/2. */
const calmDown = 11;

/**
 * Cuts every connection that sends more PINGs or SETTINGS in a second than it may: each costs the server an answer, and nothing in HTTP/2
 * or grpc-js bounds them.
 */
export function limitPings(server: Server, perSecondMax: number): void {
  for (const http2 of serversOf(server)) http2.on('session', (session) => watch(session, perSecondMax));
}

function watch(session: ServerHttp2Session, perSecondMax: number): void {
  let count = 0;
  let sinceMs = performance.now();
  const onFrame = (): void => {
    const nowMs = performance.now();
    if (nowMs - sinceMs >= 1000) [count, sinceMs] = [0, nowMs];
    if (++count <= perSecondMax) return;
    session.off('ping', onFrame);
    session.off('remoteSettings', onFrame);
    session.goaway(calmDown);
    // What has arrived and was not looked at yet goes with it.
    setImmediate(() => session.destroy());
  };
  session.on('ping', onFrame);
  session.on('remoteSettings', onFrame);
}

/** grpc-js keeps what it speaks HTTP/2 with to itself. */
function serversOf(server: Server): Http2Server[] {
  const { http2Servers } = server as unknown as { http2Servers?: Map<Http2Server, unknown> };
  if (http2Servers === undefined || http2Servers.size === 0)
    throw new Error('grpc-js no longer has its servers where PINGs can be counted');
  return [...http2Servers.keys()];
}
