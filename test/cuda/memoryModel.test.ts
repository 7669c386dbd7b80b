import { expect, it } from 'vitest';
import { beginRun, disposeRun } from '@relora/engine';
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

it.each(cases)(
  'of a card what %s needs is foreseen to a tenth and a slab',
  async (_name, { adapter, batch, ...more }) => {
    const precision = more.precision === 'float32' ? 'float32' : 'bfloat16';
    const { device, used } = openCountingCard(precision);
    const spec = tinySpec({
      ...{ kind: 'lora', precision, device: 'cuda', warmStart: { stepCount: 0 }, stepCount: 2 },
      adapter:
        adapter === null ? null : { rank: 64, cycleStepCount: 2, restartWarmupStepCount: 0, ...adapter },
      batch: { sequenceLength: 256, sequenceCount: 8, microBatchSequenceCount: 8, ...batch },
      ...more,
    });
    const run = await beginRun({
      spec,
      device,
      dataset: await dataset(),
      runFolder: newFolder(),
      attempt: 1,
    });
    await runLoop(run);
    disposeRun(run);
    const parts = cardMemory(spec, unmeasured(device.description));
    // Memory is taken in slabs: models as small as these are not known more finely than by one.
    const slab = 2 ** 26;
    expect(Math.abs(cardBytes(parts) - used.peakBytes)).toBeLessThan(0.1 * used.peakBytes + slab);
  },
);
