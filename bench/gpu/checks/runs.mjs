import { createHash } from 'node:crypto';
import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Dataset, prepareDataset } from '../../../engine/dist/data/index.js';
import { beginRun, defaultRunSpec, disposeRun, presets, trainLoop } from '../../../engine/dist/index.js';

const license = fileURLToPath(new URL('../../../LICENSE', import.meta.url));

/** A model that learns within seconds: a warm start and three cycles, with grouped queries and micro-batches. */
export const goldenSpec = defaultRunSpec({
  kind: 'relora',
  model: {
    ...{ vocabSize: 257, hiddenSize: 32, intermediateSize: 48, numHiddenLayers: 2 },
    ...{ numAttentionHeads: 4, numKeyValueHeads: 2, maxPositionEmbeddings: 64 },
  },
  dataset: 'datasets/license',
  warmStart: { stepCount: 6, learningRate: 3e-3, warmupStepCount: 3 },
  adapter: { rank: 4, alpha: 8, cycleStepCount: 6, restartWarmupStepCount: 2 },
  stepCount: 18,
  learningRate: { peak: 6e-3, schedule: 'jaggedCosine', warmupStepCount: 2 },
  batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 1 },
  precision: 'float32',
  seed: 17,
  evaluation: { everyStepCount: 0, tokenCount: 128, finalTokenCount: 16 },
  checkpoint: { everyStepCount: 0 },
  sample: { prompt: 'The ', tokenCount: 4 },
  device: 'native',
});

/** A preset with a warm start and two cycles; the planner chooses the graphs. */
export function presetSpec(preset, changes = {}) {
  return defaultRunSpec({
    ...goldenSpec,
    model: { ...presets[preset], vocabSize: 32_000 },
    warmStart: { stepCount: 2, learningRate: 1e-3, warmupStepCount: 1 },
    adapter: { rank: 64, alpha: 64, cycleStepCount: 3, restartWarmupStepCount: 1 },
    stepCount: 8,
    learningRate: { peak: 1e-3, schedule: 'jaggedCosine', warmupStepCount: 1 },
    batch: { sequenceLength: 512, sequenceCount: 8, microBatchSequenceCount: 4 },
    ...changes,
  });
}

export async function openText(folder) {
  const outputFolder = join(mkdtempSync(join(folder, 'text-')), 'dataset');
  await prepareDataset(
    {
      files: [{ path: license, name: 'LICENSE', format: 'text', split: 'auto' }],
      ...{ outputFolder, tokenizer: { kind: 'bytes' }, textField: 'text', heldOutShare: 0.1, seed: 1 },
    },
    () => {},
    new AbortController().signal,
  );
  return await Dataset.open(outputFolder, { verify: true });
}

export const begin = (device, spec, dataset, folder, options = {}) =>
  beginRun({ spec, device, dataset, runFolder: mkdtempSync(join(folder, 'run-')), attempt: 1, ...options });

/** The events of a run, until `stop` returns true for one. */
export async function follow(run, stop = () => false) {
  const abort = new AbortController();
  const events = [];
  for await (const event of trainLoop(run, abort.signal)) {
    events.push(event);
    if (stop(event)) abort.abort();
  }
  return events;
}

export const ofKind = (events, kind) => events.filter((event) => event.kind === kind);

/** Of all weights, adapters and moments. */
export async function sha256Of(run) {
  const hash = createHash('sha256');
  for (const parameter of run.model.parameters.values())
    hash.update(parameter.name).update(await run.model.valuesOf(parameter));
  for (const { name, read } of run.optimizer.state()) hash.update(name).update(await read());
  return hash.digest('hex');
}

export { disposeRun };
