import { createServer, request, type IncomingMessage, type ServerResponse } from 'node:http';
import { Transform } from 'node:stream';
import type { Random } from './random.js';

export const s3Faults = ['500', '503', 'slow', 'cut', 'wrong'] as const;
export type S3Fault = (typeof s3Faults)[number];

/** An S3 server with occasional faults: a proxy in front of a real one, which leaves signatures intact. */
export interface S3Proxy {
  port: number;
  /** The fault of a fraction of the requests; null: none. */
  fault: S3Fault | null;
  /** Number of faults so far. */
  count: number;
  /** How many of them hit a part of an object, or the end of its upload. */
  countOfParts: number;
  close(): Promise<void>;
}

export async function s3Proxy(target: number, random: Random, share = 0.2): Promise<S3Proxy> {
  const server = createServer((incoming, response) => {
    const fault = proxy.fault !== null && random() < share ? proxy.fault : null;
    if (fault !== null && fault !== 'wrong') note(incoming);
    answer(incoming, response, fault);
  });
  const note = ({ url }: IncomingMessage): void => {
    proxy.count++;
    if (url!.includes('uploadId=')) proxy.countOfParts++;
  };
  /** Modifies the request or the response: a fault of the request happens before anything is stored. */
  const answer = (incoming: IncomingMessage, response: ServerResponse, fault: S3Fault | null): void => {
    const isBefore = random() < 0.5;
    const isObject = !incoming.url!.includes('list-type') && !incoming.url!.includes('uploads');
    const refuse = (): void => {
      incoming.resume();
      const code = fault === '503' ? 'SlowDown' : 'InternalError';
      response.writeHead(Number(fault), { 'content-type': 'application/xml', connection: 'close' });
      response.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>On purpose</Message></Error>`);
    };
    const isRefused = fault === '500' || fault === '503';
    if (isRefused && isBefore) return refuse();
    const upstream = request(
      {
        host: '127.0.0.1',
        port: target,
        method: incoming.method,
        path: incoming.url,
        headers: incoming.headers,
      },
      (reply) => {
        // The request was executed, but is answered with an error.
        if (isRefused) {
          reply.resume();
          return refuse();
        }
        response.writeHead(reply.statusCode!, reply.headers);
        if (fault === 'cut' && !isBefore) return void reply.pipe(cutting(response)).pipe(response);
        if (fault === 'wrong' && incoming.method === 'GET' && isObject && reply.statusCode! < 300) {
          note(incoming);
          return void reply.pipe(flipping()).pipe(response);
        }
        if (fault === 'slow') return void reply.pipe(slowing()).pipe(response);
        reply.pipe(response);
      },
    );
    upstream.on('error', () => response.destroy());
    incoming.on('error', () => upstream.destroy());
    incoming.on('close', () => {
      if (!incoming.complete) upstream.destroy();
    });
    if (fault === 'cut' && isBefore) {
      incoming.pipe(
        new Transform({
          transform: () => {
            upstream.destroy();
            response.destroy();
            incoming.destroy();
          },
          flush: () => {
            upstream.destroy();
            response.destroy();
          },
        }),
      );
      return;
    }
    if (fault === 'wrong' && incoming.method === 'PUT' && isObject) {
      note(incoming);
      return void incoming.pipe(flipping()).pipe(upstream);
    }
    incoming.pipe(upstream);
  };
  /** A long answer is slow at its start, so that it takes seconds and not minutes. */
  const slowing = (): Transform => {
    let left = 10;
    return new Transform({
      transform: (chunk: Buffer, _, done) =>
        left-- > 0 ? void setTimeout(() => done(null, chunk), 1000 * random()) : done(null, chunk),
      flush: (done) => void setTimeout(done, 2000 * random()),
    });
  };
  /** Flips one bit in the middle of the first chunk. */
  const flipping = (): Transform => {
    let isDone = false;
    return new Transform({
      transform: (chunk: Buffer, _, done) => {
        const changed = Buffer.from(chunk);
        if (!isDone && chunk.length > 0) {
          const at = Math.floor(random() * chunk.length);
          changed[at] = changed[at]! ^ 4;
          isDone = true;
        }
        done(null, changed);
      },
    });
  };
  const cutting = (response: ServerResponse): Transform =>
    new Transform({
      transform(chunk: Buffer) {
        this.push(chunk.subarray(0, Math.floor(chunk.length * random())));
        setImmediate(() => response.destroy());
      },
      flush: () => void response.destroy(),
    });
  server.requestTimeout = 0;
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const proxy: S3Proxy = {
    port: (server.address() as { port: number }).port,
    fault: null,
    count: 0,
    countOfParts: 0,
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return proxy;
}
