import type { Socket } from 'node:net';

/** The bytes that every HTTP/2 connection begins with. */
const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');

const refusalOfHttp1 =
  'HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nThis port speaks gRPC over HTTP/2.\n';

/**
 * Passes a connection on once its client has sent the preface of HTTP/2, with these bytes put back; a connection that sends anything else,
 * or nothing in time, is closed.
 */
export function awaitPreface(socket: Socket, timeoutMs: number, onSpoken: () => void): void {
  const timer = setTimeout(() => socket.destroy(), timeoutMs);
  let seen = Buffer.alloc(0);
  const stop = (): void => {
    clearTimeout(timer);
    socket.off('readable', read);
    socket.off('close', stop);
  };
  const read = (): void => {
    for (let bytes; (bytes = socket.read() as Buffer | null) !== null;) seen = Buffer.concat([seen, bytes]);
    const shown = seen.subarray(0, preface.length);
    if (!preface.subarray(0, shown.length).equals(shown)) {
      stop();
      if (/^[A-Z]{3,7} /.test(shown.toString('latin1'))) socket.end(refusalOfHttp1);
      // Closes after writing; the rest of what the client sends is ignored.
      socket.destroySoon();
    } else if (shown.length === preface.length) {
      stop();
      socket.unshift(seen);
      onSpoken();
    }
  };
  socket.on('readable', read);
  socket.on('close', stop);
}
