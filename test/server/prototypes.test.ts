import { readFileSync } from 'node:fs';
import { status } from '@grpc/grpc-js';
import { ErrorInfo, RpcStatus } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { readDescriptors, type FieldDescriptor } from '../../server/dist/grpc/descriptors.js';
import { jobSpec, openApi } from './apiServer.js';
import { readyDataset } from './parts.js';
import { rawCall, rawClient } from './rawCalls.js';

const contract = new URL('../../server/src/generated/relora.binpb', import.meta.url);
const { messages, requests } = readDescriptors(readFileSync(contract));

/** Properties that every object has, each with an anagram that none has. */
const names = [
  ['__proto__', '__prota__'],
  ['constructor', 'constructer'],
  ['toString', 'toStrinq'],
  ['hasOwnProperty', 'hasOwnPropertx'],
] as const;

const string = 9;
const message = 11;
const depthMax = 5;

type Step = readonly [number: number, field: FieldDescriptor];

/** All paths through a message type to a text field. */
function* textsOf(type: string, path: readonly Step[] = []): Generator<readonly Step[]> {
  if (path.length > depthMax) return;
  for (const [number, field] of messages.get(type) ?? []) {
    const way = [...path, [number, field] as const];
    if (field.type === string) yield way;
    else if (field.type === message) yield* textsOf(field.typeName, way);
  }
}

/** A message that contains only this text. */
function messageWith(way: readonly Step[], text: string): Buffer {
  return way.reduceRight(
    (bytes, [number]) => Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]),
    Buffer.from(text),
  );
}

function varint(value: number): Buffer {
  return value < 128
    ? Buffer.from([value])
    : Buffer.concat([Buffer.from([(value % 128) + 128]), varint(value >> 7)]);
}

test('a name that every object answers to is a word like any other, in every text of every request', async () => {
  const { address, parts } = await openApi({ RELORA_TASK_TIMEOUT_SECONDS: '2' });
  await readyDataset(parts);
  const client = rawClient(address);
  const answer = async (path: string, bytes: Buffer): Promise<string> => {
    const { error } = await rawCall(client, path, bytes);
    const details = error?.metadata.get('grpc-status-details-bin')[0] as Buffer | undefined;
    const [info] = RpcStatus.decode(details ?? Buffer.alloc(0)).details;
    return `${status[error?.code ?? status.OK]} ${info === undefined ? '' : ErrorInfo.decode(info.value).reason}`;
  };

  const differences: string[] = [];
  let texts = 0;
  for (const [path, type] of requests) {
    // A stream of future events ends at once if requested.
    const end = [...(messages.get(type) ?? [])].find(([, { name }]) => name === 'until_all_ended');
    const ending = end === undefined ? Buffer.alloc(0) : Buffer.from([end[0] * 8, 1]);
    for (const way of textsOf(type)) {
      texts++;
      const field = way.map(([, { name }]) => name).join('.');
      for (const [name, plain] of names) {
        const [found, expected] = await Promise.all(
          [name, plain].map((text) => answer(path, Buffer.concat([messageWith(way, text), ending]))),
        );
        // The key that an object cannot store like others is refused before anything else is checked.
        const isRefused = name === '__proto__' && way.at(-1)![1].isMapKey;
        const right = isRefused ? 'INVALID_ARGUMENT REQUEST_INVALID' : expected;
        if (found !== right) differences.push(`${path} ${field} ${name}: ${found}, not ${right}`);
      }
    }
  }
  expect(differences).toEqual([]);
  expect(texts).toBeGreaterThan(100);
}, 600_000);

test('a label with such a name is kept, or refused with its place', async () => {
  const { address, training, parts } = await openApi();
  await readyDataset(parts);
  const labels = { constructor: 'one', toString: 'two' };
  const { job } = await training.createJob({ spec: jobSpec(), labels });
  expect(job!.labels).toEqual(labels);
  const { jobs } = await training.listJobs({ labels: { constructor: 'one' } });
  expect(jobs.map(({ name }) => name)).toEqual([job!.name]);

  const entry = Buffer.concat([Buffer.from([10, 9]), Buffer.from('__proto__'), Buffer.from([18, 1, 120])]);
  const bytes = Buffer.concat([Buffer.from([34, entry.length]), entry]);
  const { error } = await rawCall(rawClient(address), '/relora.v1.TrainingService/CreateJob', bytes);
  expect(error?.details).toBe('labels[0].key: expected another key, got "__proto__"');
});
