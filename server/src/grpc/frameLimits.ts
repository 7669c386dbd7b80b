import type { ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import type { Server } from '@grpc/grpc-js';
import { serversOf } from './grpcInternals.js';

/** HTTP/2's ENHANCE_YOUR_CALM. */
const calmDown = 11;

export interface FrameLimits {
  /** PINGs and SETTINGS frames, each of which the server must answer. */
  pingsPerSecondMax: number;
  /** Calls that are begun and reset: each costs the server a call, but never counts as open. */
  resetsPerSecondMax: number;
}

/** Closes every connection that exceeds a limit per second: neither HTTP/2 nor grpc-js limits these frames. */
export function limitFrames(server: Server, { pingsPerSecondMax, resetsPerSecondMax }: FrameLimits): void {
  for (const http2 of serversOf(server))
    http2.on('session', (session) => {
      const onPing = counter(pingsPerSecondMax, () => cut(session));
      session.on('ping', onPing);
      session.on('remoteSettings', onPing);
      const onReset = counter(resetsPerSecondMax, () => cut(session));
      session.on('stream', (stream: ServerHttp2Stream) => {
        // `aborted` comes too early if both frames arrived together, and not at all once grpc-js has ended its side.
        stream.once('close', () => {
          if (stream.rstCode !== 0) onReset();
        });
      });
    });
}

/** Calls `onExceeded` once, when the returned function was called more often than that in a second. */
function counter(perSecondMax: number, onExceeded: () => void): () => void {
  let count = 0;
  let sinceMs = performance.now();
  let isExceeded = false;
  return () => {
    const nowMs = performance.now();
    if (nowMs - sinceMs >= 1000) [count, sinceMs] = [0, nowMs];
    if (isExceeded || ++count <= perSecondMax) return;
    isExceeded = true;
    onExceeded();
  };
}

function cut(session: ServerHttp2Session): void {
  if (session.destroyed) return;
  session.goaway(calmDown);
  // This also discards what has arrived but was not read yet.
  setImmediate(() => session.destroy());
}
