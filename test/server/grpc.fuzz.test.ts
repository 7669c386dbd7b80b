import { readFileSync } from 'node:fs';
import { status } from '@grpc/grpc-js';
import { ErrorInfo, RpcStatus } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { readDescriptors } from '../../server/dist/grpc/descriptors.js';
import { standardFiles } from '../../server/dist/grpc/standardServices.js';
import { openApi } from './apiServer.js';
import { patienceMs } from '../patience.mjs';
import { readyDataset } from './parts.js';
import { makeMessages, randomFrom } from './randomMessages.js';
import { rawCall, rawClient } from './rawCalls.js';

const contract = new URL('../../server/src/generated/relora.binpb', import.meta.url);
const descriptors = readDescriptors(Buffer.concat([readFileSync(contract), standardFiles()]));
const methods = [...descriptors.requests].filter(([path]) => /^\/(relora|grpc)\./.test(path));

/** TEST_FUZZ_MESSAGES asks for more, TEST_FUZZ_SEED for others; the seed of a failure is in its line. */
const messagesOfMethod = Number(process.env.TEST_FUZZ_MESSAGES ?? 60);
const seedBase = Number(process.env.TEST_FUZZ_SEED ?? 1);
const together = 10;

test('no message makes a fault of ours, whatever is in it: each is answered or refused with its reason', async () => {
  const { address, parts } = await openApi({ RELORA_TASK_TIMEOUT_SECONDS: '2' });
  await readyDataset(parts);
  const client = rawClient(address);
  const codes = new Map<string, number>();
  const faults: string[] = [];

  const sendOne = async (path: string, typeName: string, seed: number): Promise<void> => {
    const random = randomFrom(seed);
    const { messageOf, mutate } = makeMessages(descriptors, random);
    const message = random() < 0.3 ? messageOf(typeName) : mutate(messageOf(typeName));
    // A watch that was rightly opened lasts until its deadline; whatever else takes long is waited for.
    const isWatch = /\/Watch(Job)?$/.test(path); // of a job, of health
    const { error } = await rawCall(client, path, message, { deadlineMs: isWatch ? 2000 : patienceMs });
    const code = status[error?.code ?? status.OK];
    if (!isWatch) codes.set(code, (codes.get(code) ?? 0) + 1);
    const details = error?.metadata.get('grpc-status-details-bin')[0] as Buffer | undefined;
    const info = RpcStatus.decode(details ?? Buffer.alloc(0)).details[0];
    const hasReason = info !== undefined && ErrorInfo.decode(info.value).reason !== '';
    // The client itself notices its deadline first.
    const isOrderly = error === undefined || hasReason || (isWatch && code === 'DEADLINE_EXCEEDED');
    if (!isOrderly || code === 'INTERNAL' || code === 'UNKNOWN')
      faults.push(
        `${path} seed ${seed}: ${code} ${error?.details} ${message.toString('base64').slice(0, 200)}`,
      );
  };

  for (const [index, [path, typeName]] of methods.entries()) {
    for (let sent = 0; sent < messagesOfMethod; sent += together) {
      const seeds = Array.from({ length: together }, (_, each) => seedBase + index * 100_000 + sent + each);
      await Promise.all(seeds.map(async (seed) => await sendOne(path, typeName, seed)));
    }
  }
  expect(faults).toEqual([]);
  expect(methods.length).toBeGreaterThan(25);
  expect(codes.get('INVALID_ARGUMENT')).toBeGreaterThan(methods.length * messagesOfMethod * 0.3);
  expect(codes.get('OK')).toBeGreaterThan(10);
}, 3_600_000);
