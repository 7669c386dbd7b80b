import { ServerServiceDefinition } from '@relora/sdk/contract';
import { ClientError, createChannel, createClient, Status } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { healthService, runServer } from './runningServer.js';

const serving = 1;
const notServing = 2;
const serviceUnknown = 3;

test('health answers for the server and for each of its services', async () => {
  const { health } = await runServer();
  const names = [
    '',
    ...['Training', 'Artifact', 'Dataset', 'Model', 'Server'].map((name) => `relora.v1.${name}Service`),
  ];
  for (const service of names) {
    expect((await health.check({ service })).status, service).toBe(serving);
  }
});

test('a service that does not exist is NOT_FOUND to a check and SERVICE_UNKNOWN to a watch', async () => {
  const { health } = await runServer();
  const refused = await health.check({ service: 'relora.v1.Tea' }).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(ClientError);
  expect((refused as ClientError).code).toBe(Status.NOT_FOUND);
  for await (const { status } of health.watch({ service: 'relora.v1.Tea' })) {
    expect(status).toBe(serviceUnknown);
    break;
  }
});

test('a watch of health hears that the server is about to stop before its connection ends', async () => {
  const { health, server } = await runServer({ RELORA_SHUTDOWN_SECONDS: '2' });
  const seen: number[] = [];
  try {
    for await (const { status } of health.watch({ service: '' })) {
      seen.push(status);
      if (status === serving) void server.stop();
      if (status === notServing) break;
    }
  } finally {
    expect(seen).toEqual([serving, notServing]);
  }
});

test('health alone is served in plain text at an address of its own, until the server has ended', async () => {
  const { server } = await runServer({ RELORA_HEALTH_ADDRESS: '127.0.0.1:0', RELORA_SHUTDOWN_SECONDS: '2' });
  const channel = createChannel(server.healthAddress!);
  onTestFinished(() => channel.close());
  const probe = createClient(healthService, channel);
  expect((await probe.check({ service: '' })).status).toBe(serving);
  const refused = await createClient(ServerServiceDefinition, channel)
    .getServerInfo({})
    .catch((error: unknown) => error);
  expect((refused as ClientError).code).toBe(Status.UNIMPLEMENTED);
  const seen: number[] = [];
  for await (const { status } of probe.watch({ service: '' })) {
    seen.push(status);
    if (status === serving) void server.stop();
    if (status === notServing) break;
  }
  expect(seen).toEqual([serving, notServing]);
});
