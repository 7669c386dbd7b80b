import { expect, test } from 'vitest';
import { temporaryFolder } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { startReceiver } from '../server/webhookReceiver.js';
import { cli } from './commandLine.js';

test('a webhook is created, tested and deleted, each answer in whole lines', async () => {
  const receiver = await startReceiver();
  const { address } = await realServer({ RELORA_WEBHOOK_NETWORKS: '127.0.0.1' });
  const relora = cli(temporaryFolder(), address);
  const lines = async (...args: string[]) => (await relora(['webhook', ...args])).output;
  expect(await lines('create', receiver.url, '--id', 'mine')).toMatch(
    /^webhooks\/mine\nKey of its signatures, which is not shown again: whsec_\S+\n$/,
  );
  expect(await lines('test', 'mine')).toMatch(/^Accepted with 200 after [\d.]+ s\n$/);
  expect(await lines('resend', 'mine')).toBe('0 will be sent again\n');
  expect(await lines('delete', 'mine')).toBe('webhooks/mine is deleted\n');
});
