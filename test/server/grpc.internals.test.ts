import {
  Client,
  credentials,
  Server,
  ServerCredentials,
  ServerInterceptingCall,
  status,
  type ServiceError,
} from '@grpc/grpc-js';
import { expect, onTestFinished, test } from 'vitest';
import { handlersOf, serversOf, streamOf } from '../../server/dist/grpc/grpcInternals.js';

/** A bare grpc-js server with one method, and the calls that its interceptor received. */
async function bareServer() {
  const seen: string[] = [];
  const streams: unknown[] = [];
  const server = new Server({
    interceptors: [
      ({ path }, transport) => {
        seen.push(path);
        streams.push(streamOf(transport));
        return new ServerInterceptingCall(transport);
      },
    ],
  });
  const pass = (bytes: Buffer): Buffer => bytes;
  server.register(
    '/a/Known',
    (_: unknown, answer: (error: null, bytes: Buffer) => void) => answer(null, Buffer.from('yes')),
    pass,
    pass,
    'unary',
  );
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    ),
  );
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure());
  onTestFinished(() => {
    client.close();
    server.forceShutdown();
  });
  const call = async (path: string): Promise<string> =>
    await new Promise((resolve) => {
      const done = (error: ServiceError | null, answer?: Buffer): void =>
        resolve(error === null ? String(answer) : status[error.code]!);
      client.makeUnaryRequest(path, pass, pass, Buffer.alloc(0), done);
    });
  return { server, seen, streams, call };
}

test('grpc-js has what we use of it beyond its public interface, and lacks a public way to the same', async () => {
  const { server, seen, streams, call } = await bareServer();
  expect(serversOf(server).map((each) => typeof each.on)).toEqual(['function']);
  expect([...handlersOf(server).keys()]).toEqual(['/a/Known']);
  expect(await call('/a/Known')).toBe('yes');
  expect(await call('/a/Unknown')).toBe('UNIMPLEMENTED');
  // If interceptors were called for unknown methods, they could answer with a reason, and handlersOf would be unnecessary.
  expect(seen).toEqual(['/a/Known']);
  expect(streams).toEqual([expect.objectContaining({ id: 1 })]);
});

test('a version without one of these is refused by name', () => {
  const version = /This version of @grpc\/grpc-js no longer has /;
  const other = {} as never;
  for (const use of [serversOf, handlersOf, streamOf]) expect(() => use(other)).toThrow(version);
});
