import { createRequire } from 'node:module';
import { credentials, loadPackageDefinition, type ServiceClientConstructor } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { Status, type ClientError } from 'nice-grpc';
import { expect, test } from 'vitest';
import { runServer } from './runningServer.js';

test('open streams of health and reflection do not hold up a stop', async () => {
  const { health, server } = await runServer();

  const heard: number[] = [];
  let isServing = (): void => {};
  const serving = new Promise<void>((resolve) => (isServing = resolve));
  const watch = (async () => {
    try {
      for await (const { status } of health.watch({ service: '' })) {
        heard.push(status);
        isServing();
      }
      return undefined;
    } catch (error) {
      return error;
    }
  })();

  const file = createRequire(import.meta.url).resolve(
    '@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto',
  );
  const loaded = loadPackageDefinition(loadSync(file)) as unknown as {
    grpc: { reflection: { v1: { ServerReflection: ServiceClientConstructor } } };
  };
  const client = new loaded.grpc.reflection.v1.ServerReflection(
    server.grpcAddress,
    credentials.createInsecure(),
  );
  const stream = client.ServerReflectionInfo!() as unknown as NodeJS.ReadWriteStream & {
    write(message: object): void;
  };
  const reflection = new Promise<{ code: number }>((resolve) =>
    stream.once('error', (error) => resolve(error as never)),
  );
  const answered = new Promise((resolve) => stream.once('data', resolve));
  stream.write({ listServices: '' });
  await Promise.all([serving, answered]);

  await server.stop(); // within a test's time limit; if streams delayed it, it would take RELORA_SHUTDOWN_SECONDS
  expect(heard).toEqual([1, 2]);
  expect(((await watch) as ClientError).code).toBe(Status.UNAVAILABLE);
  expect((await reflection).code).toBe(Status.UNAVAILABLE);
  client.close();
});
