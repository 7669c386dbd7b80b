import { expect, it } from 'vitest';
import { beginRun, disposeRun, type Device, type RunSpec } from '@relora/engine';
import { cardBytes, cardMemory, presets, unmeasured, type GivenSpec } from '@relora/engine/plan';
import { Ours, reservePlan } from '../../bench/gpu/ours.mjs';
import { licenseDataset, runLoop, temporaryFolders, tinySpec } from '../engine/tinyRun.js';
import { openCountingCard } from './countingCard.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const model = (name: string) => ({ ...presets[name]!, vocabSize: 32_000 });

const cases: [name: string, changes: GivenSpec][] = [
  ['llama-20m', { model: model('llama-20m') }],
  ['llama-20m in float32', { model: model('llama-20m'), precision: 'float32' }],
  ['llama-9m with separate paths', { model: model('llama-9m'), adapter: { graph: 'separate' } }],
  ['llama-9m with dropout', { model: model('llama-9m'), adapter: { dropout: 0.1 } }],
  ['llama-9m with recomputation', { model: model('llama-9m'), recomputation: 'blocks' }],
  [
    'llama-20m in micro-batches with moments in eight bits',
    { model: model('llama-20m'), optimizer: { momentType: 'int8' }, batch: { microBatchSequenceCount: 4 } },
  ],
  ['llama-9m of full rank', { model: model('llama-9m'), kind: 'fullRank', adapter: null }],
  [
    'llama-9m of full rank by Muon',
    {
      ...{ model: model('llama-9m'), kind: 'fullRank', adapter: null },
      optimizer: { fullRankOptimizer: 'muon' },
    },
  ],
  [
    'llama-9m with LoRA-Muon in eight bits',
    {
      model: model('llama-9m'),
      adapter: { adapterOptimizer: 'loraMuon' },
      optimizer: { momentType: 'int8' },
    },
  ],
  ['llama-9m with a warm start', { model: model('llama-9m'), warmStart: { stepCount: 2 } }],
  [
    'llama-9m over two restarts',
    // A restart that zeroes all moments checks that they are zero, and values of this card are ones.
    {
      ...{ model: model('llama-9m'), kind: 'relora', stepCount: 6 },
      adapter: { momentReset: 'magnitude' },
    },
  ],
];

const specOf = ({ adapter, batch, ...more }: GivenSpec) =>
  tinySpec({
    ...{ kind: 'lora', precision: 'bfloat16', device: 'cuda', warmStart: { stepCount: 0 }, stepCount: 2 },
    adapter: adapter === null ? null : { rank: 64, cycleStepCount: 2, restartWarmupStepCount: 0, ...adapter },
    batch: { sequenceLength: 256, sequenceCount: 8, microBatchSequenceCount: 8, ...batch },
    ...more,
  });

const begin = async (spec: RunSpec, device: Device) =>
  beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });

/** Allocated with the device: the workspace of the product library, and the tables of updates. */
const apartBytes = 2 ** 25 + 2 ** 20;

it.each(cases)('of a card what %s needs is foreseen to three hundredths', async (_name, changes) => {
  const spec = specOf(changes);
  const { device } = openCountingCard(spec.precision === 'float32' ? 'float32' : 'bfloat16');
  const mostBytes = watchTaken(device);
  const run = await begin(spec, device);
  await runLoop(run);
  disposeRun(run);
  const planned = cardBytes(cardMemory(spec, unmeasured(device.description)));
  expect(Math.abs(planned / mostBytes() - 1)).toBeLessThan(0.03);
});

/** The most bytes that buffers have had together since this call. */
function watchTaken(device: ReturnType<typeof openCountingCard>['device']): () => number {
  let most = 0;
  const take = device.take.bind(device);
  device.take = (bytes, lifetime) => {
    const address = take(bytes, lifetime);
    most = Math.max(most, device.memory().bytes);
    return address;
  };
  return () => most + apartBytes;
}

it.each(cases)(
  '%s has its memory before the first step, and allocates nothing in any',
  async (_name, changes) => {
    const spec = specOf(changes);
    const { device, used } = openCountingCard(spec.precision === 'float32' ? 'float32' : 'bfloat16');
    const run = await begin(spec, device);
    const before = used.allocationCount;
    await runLoop(run);
    expect(used.allocationCount).toBe(before);
    disposeRun(run);
  },
);

it('a run that a card has no memory for is refused before its first step, with figures and what would fit', async () => {
  const spec = specOf({ model: model('llama-20m'), batch: { sequenceLength: 512 } });
  const needed = cardBytes(cardMemory(spec, unmeasured(openCountingCard('bfloat16').device.description)));
  const { device, used } = openCountingCard('bfloat16', 0.8 * needed);
  const refused = begin(spec, device);
  await expect(refused).rejects.toMatchObject({ reason: 'DEVICE_OUT_OF_MEMORY' });
  await expect(refused).rejects.toThrow(
    /needs [\d.]+ GiB of the card's memory, of which [\d.]+ GiB are free: it would fit with batch.micro_batch_sequence_count 2/,
  );
  expect(used.peakBytes, 'nothing was begun').toBeLessThan(2 ** 26);
});

/** Steps of llama-1b on a card that computes nothing: memory use is the same as on a real card. */
const largeRuns: [name: string, most: number, changes: object][] = [
  ['at full speed', 16.5e9, {}],
  [
    'recomputed, moments in eight bits, micro-batches of 4',
    8.5e9,
    { recompute: true, momentType: 'int8', microBatch: 4 },
  ],
];

it.each(largeRuns)(
  'ReLoRA of llama-1b with 8,192 tokens %s takes its plan and no more, over a restart',
  async (_name, most, changes) => {
    const side = {
      ...{ config: { ...presets['llama-1b']!, vocabSize: 32_000 }, rank: 128, batch: 16, time: 512 },
      ...{ graph: 'merged', ...changes },
    };
    const { planned, peakBytes } = await bytesOf(side);
    expect(planned).toBeLessThan(most);
    expect(peakBytes).toBeLessThan(most);
    expect(Math.abs(planned / peakBytes - 1)).toBeLessThan(0.02);
  },
);

it('memory grows at most in proportion to the length of a sequence, up to the longest', async () => {
  const config = { ...model('llama-9m'), maxPositionEmbeddings: 16_384 };
  const side = { config, rank: 64, batch: 1, graph: 'merged' };
  const peaks: number[] = [];
  for (const time of [4096, 8192, 16_384]) {
    const { planned, takenBytes } = await bytesOf({ ...side, time });
    expect(Math.abs(planned / takenBytes - 1)).toBeLessThan(0.03);
    peaks.push(takenBytes);
  }
  const [short, middle, long] = peaks as [number, number, number];
  // Less where the head already computes as many logits at once as it may; with a square it would be 4.
  expect((long - middle) / (middle - short)).toBeLessThan(2.05);
});

/** Planned memory, and what three steps with a restart between them took: of the card, which includes a reserve, and for buffers. */
async function bytesOf(side: { batch: number; time: number }) {
  const { device, used } = openCountingCard('bfloat16');
  const mostBytes = watchTaken(device);
  const planned = reservePlan(device, side);
  const count = side.batch * side.time;
  const text = {
    batchOf: () => ({ inputs: new Int32Array(count).fill(1), targets: new Int32Array(count).fill(2) }),
  };
  const ours = await Ours.open(device, text, side);
  await ours.steps(2);
  await ours.restart();
  await ours.steps(1);
  ours.close();
  return { planned, peakBytes: used.peakBytes, takenBytes: mostBytes() };
}
