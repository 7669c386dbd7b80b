import { readFileSync } from 'node:fs';
import { status } from '@grpc/grpc-js';
import { ErrorInfo, RpcStatus } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { readDescriptors } from '../../server/dist/grpc/descriptors.js';
import { standardFiles } from '../../server/dist/grpc/standardServices.js';
import { openApi } from './apiServer.js';
import { patienceMs } from '../patience.mjs';
import { readyDataset, submit } from './parts.js';
import { makeMessages, randomFrom } from './randomMessages.js';
import { rawCall, rawClient } from './rawCalls.js';

const contract = new URL('../../server/src/generated/relora.binpb', import.meta.url);
const descriptors = readDescriptors(Buffer.concat([readFileSync(contract), standardFiles()]));
const methods = [...descriptors.requests].filter(([path]) => /^\/(relora|grpc)\./.test(path));

/**
 * TEST_FUZZ_MESSAGES sets the number of messages, TEST_FUZZ_SEED the seed, TEST_FUZZ_METHODS a pattern for method paths; a failure's line
 * contains its seed.
 */
const messagesOfMethod = Number(process.env.TEST_FUZZ_MESSAGES ?? 60);
const seedBase = Number(process.env.TEST_FUZZ_SEED ?? 1);
const wanted = new RegExp(process.env.TEST_FUZZ_METHODS ?? '');
const startedAt = performance.now();
const isLong = process.env.TEST_FUZZ_MESSAGES !== undefined;

/** Watches of jobs and of health. */
const watches = /\/Watch\w*$/;

test('no message makes a fault of ours, whatever is in it: each is answered or refused with its reason', async () => {
  const { address, parts } = await openApi({ RELORA_TASK_TIMEOUT_SECONDS: '2' });
  await readyDataset(parts);
  await submit(parts, { jobId: 'my-job' });
  const client = rawClient(address);
  const faults: string[] = [];
  const all = new Map<string, number>();
  /** Without watches: whether one is refused before its deadline depends on timing. */
  const timeless = new Map<string, number>();
  const add = (to: Map<string, number>, codes: ReadonlyMap<string, number>): void => {
    for (const [code, count] of codes) to.set(code, (to.get(code) ?? 0) + count);
  };

  const sendOne = async (path: string, typeName: string, seed: number): Promise<string> => {
    const random = randomFrom(seed);
    const { messageOf, mutate } = makeMessages(descriptors, random);
    const message = random() < 0.5 ? messageOf(typeName) : mutate(messageOf(typeName));
    // A successful watch lasts until its deadline; other slow calls are awaited.
    const isWatch = watches.test(path);
    const { error } = await rawCall(client, path, message, { deadlineMs: isWatch ? 2000 : patienceMs });
    const code = status[error?.code ?? status.OK];
    const details = error?.metadata.get('grpc-status-details-bin')[0] as Buffer | undefined;
    const info = RpcStatus.decode(details ?? Buffer.alloc(0)).details[0];
    const hasReason = info !== undefined && ErrorInfo.decode(info.value).reason !== '';
    // The client itself detects its deadline first.
    const isWatched = isWatch && code === 'DEADLINE_EXCEEDED';
    const isOrderly = error === undefined || hasReason || isWatched;
    if (!isOrderly || code === 'INTERNAL' || code === 'UNKNOWN')
      faults.push(
        `${path} seed ${seed}: ${code} ${error?.details} ${message.toString('base64').slice(0, 200)}`,
      );
    return isWatched ? 'WATCHED' : code;
  };

  const chosen = [...methods.entries()].filter(([, [path]]) => wanted.test(path));
  for (const [index, [path, typeName]] of chosen) {
    const began = performance.now();
    const codes = new Map<string, number>();
    let next = 0;
    // Each sender sends its next message when the previous one is answered, so that a slow message does not block the others.
    const send = async (): Promise<void> => {
      while (next < messagesOfMethod) {
        const code = await sendOne(path, typeName, seedBase + index * 100_000 + next++);
        codes.set(code, (codes.get(code) ?? 0) + 1);
      }
    };
    await Promise.all(Array.from({ length: watches.test(path) ? 100 : 10 }, send));
    add(all, codes);
    if (!watches.test(path)) add(timeless, codes);
    if (isLong) report(path, codes, performance.now() - began);
  }
  if (isLong) report(`${chosen.length} methods`, all, performance.now() - startedAt);
  expect(faults).toEqual([]);
  if (wanted.source !== '(?:)') return;
  const answered = methods.filter(([path]) => !watches.test(path)).length;
  expect(answered).toBeGreaterThan(25);
  expect(timeless.get('INVALID_ARGUMENT')).toBeGreaterThan(answered * messagesOfMethod * 0.3);
  expect(timeless.get('OK')).toBeGreaterThan(10);
}, 3_600_000);

/** A line of progress for long runs. */
function report(what: string, codes: ReadonlyMap<string, number>, milliseconds: number): void {
  const counts = [...codes].sort(([, a], [, b]) => b - a).map(([code, count]) => `${code} ${count}`);
  console.log(`${what}: ${counts.join(', ')} in ${(milliseconds / 1000).toFixed(1)} s`);
}
