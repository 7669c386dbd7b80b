import type { ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import type { Server } from '@grpc/grpc-js';
import { serversOf } from './grpcInternals.js';

/** ENHANCE_YOUR_CALM of HTTP/2. */
const calmDown = 11;

export interface FrameLimits {
  /** PINGs and SETTINGS: each costs the server an answer. */
  pingsPerSecondMax: number;
  /** Calls that are begun and reset: each costs the server a call, and none of them counts as open. */
  resetsPerSecondMax: number;
}

/** Cuts every connection that sends more of something in a second than it may: nothing in HTTP/2 or grpc-js bounds that. */
export function limitFrames(server: Server, { pingsPerSecondMax, resetsPerSecondMax }: FrameLimits): void {
  for (const http2 of serversOf(server))
    http2.on('session', (session) => {
      const onPing = counter(pingsPerSecondMax, () => cut(session));
      session.on('ping', onPing);
      session.on('remoteSettings', onPing);
      const onReset = counter(resetsPerSecondMax, () => cut(session));
      session.on('stream', (stream: ServerHttp2Stream) => {
        // `aborted` comes before this where both frames came together, and not at all once grpc-js has ended its side.
        stream.once('close', () => {
          if (stream.rstCode !== 0) onReset();
        });
      });
    });
}

/** Calls once when it was called more than so often in a second. */
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
  // What has arrived and was not looked at yet goes with it.
  setImmediate(() => session.destroy());
}
