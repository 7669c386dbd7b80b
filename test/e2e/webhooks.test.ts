import { createChannel, createClient, type Client } from 'nice-grpc';
import { WebhookServiceDefinition } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { isSigned, startReceiver, type Received } from '../server/webhookReceiver.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder } from './tinyJob.js';
import { clientsOf, createTinyJob, uploadTinyText } from './watchedJob.js';

const settings = {
  RELORA_WEBHOOK_NETWORKS: '127.0.0.1',
  RELORA_WEBHOOK_RETRY_SECONDS: '0.05',
  // Kills are triggered by received messages, possibly before any checkpoint.
  RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '20',
};
const sequenceOf = ({ message }: Received): number => Number(message.data.sequence);
const isFinal = ({ message }: Received): boolean => (message.data.event as { final: boolean }).final;

test('a receiver hears of every event at least once under one id, whatever dies between', async () => {
  const folder = temporaryFolder();
  const receiver = await startReceiver();
  // Every seventh message fails twice, so that retries are pending when the server is killed.
  const seen = new Map<string, number>();
  receiver.answer = (message) => {
    const count = (seen.get(message.id) ?? 0) + 1;
    seen.set(message.id, count);
    return sequenceOf(message) % 7 === 0 && count < 3 ? 503 : 200;
  };
  let server = await startServerProcess(folder, settings);
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  const channel = createChannel(server.grpcAddress);
  const webhooks: Client<typeof WebhookServiceDefinition> = createClient(WebhookServiceDefinition, channel);
  const { secret } = await webhooks.createWebhook({
    url: receiver.url,
    eventKinds: [
      'state',
      'step',
      'evaluation',
      'restart',
      'checkpoint',
      'artifact',
      'sample',
      'warning',
      'plan',
      'documents',
    ],
  });
  channel.close();
  const name = await createTinyJob(clients, 60);
  for (const count of [10, 25, 40, 60]) {
    await receiver.until((received) => received.length >= count);
    server.process.kill('SIGKILL');
    await server.exited;
    server = await startServerProcess(folder, settings);
  }
  await receiver.until((received) => received.some(isFinal));
  const last = sequenceOf(receiver.received.find(isFinal)!);
  // Failed messages are repeated after the last one.
  await receiver.until((received) => {
    const taken = received.filter((message) => sequenceOf(message) % 7 !== 0 || seen.get(message.id)! >= 3);
    return new Set(taken.map(sequenceOf)).size === last;
  });
  const { received } = receiver;
  expect(new Set(received.map(sequenceOf))).toEqual(
    new Set(Array.from({ length: last }, (_, index) => index + 1)),
  );
  expect(new Set(received.map(({ message }) => message.data.job))).toEqual(new Set([name]));
  // Each number has one id and one body, and each id one number.
  expect(new Set(received.map(({ id, body }) => `${id} ${body}`)).size).toBe(last);
  expect(new Set(received.map((message) => `${message.id} ${sequenceOf(message)}`)).size).toBe(last);
  expect(received.every((message) => isSigned(message, secret))).toBe(true);
  // Only messages in flight at a kill, and those that were refused, are sent twice.
  const refused = received.filter((message) => sequenceOf(message) % 7 === 0).length;
  const others = received.length - refused;
  const distinct = new Set(received.filter((message) => sequenceOf(message) % 7 !== 0).map(sequenceOf)).size;
  expect(others - distinct).toBeLessThanOrEqual(4);
});
