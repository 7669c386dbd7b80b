import { expect, it } from 'vitest';
import { beginRun, disposeRun, type Device, type RunSpec } from '@relora/engine';
import { cardBytes, cardMemory, presets, unmeasured, type GivenSpec } from '@relora/engine/plan';
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
  ['llama-9m with a warm start', { model: model('llama-9m'), warmStart: { stepCount: 2 } }],
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

it.each(cases)('of a card what %s needs is foreseen to a tenth and a slab', async (_name, changes) => {
  const spec = specOf(changes);
  const { device, used } = openCountingCard(spec.precision === 'float32' ? 'float32' : 'bfloat16');
  device.reserve = () => null; // so that memory is taken as it is needed
  const run = await begin(spec, device);
  await runLoop(run);
  disposeRun(run);
  const parts = cardMemory(spec, unmeasured(device.description));
  // Memory is taken in slabs: models as small as these are not known more finely than by one.
  const slab = 2 ** 26;
  expect(Math.abs(cardBytes(parts) - used.peakBytes)).toBeLessThan(0.1 * used.peakBytes + slab);
});

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
