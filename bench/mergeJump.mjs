// How far rounding makes the loss jump at a restart on the device `cuda`, which keeps the base W in bfloat16 and multiplies by W' = W + s A B,
// rounded once: before a restart W' comes from the rounded W, after it from the merged weight. Runs of the demo's text on a processor, in
// float32; at each restart the held-out loss with each of the two W' is computed, all else in float32.
//
//     node bench/mergeJump.mjs [--preset llama-9m] [--steps 300] [--seeds 3]
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Dataset } from '../engine/dist/data/index.js';
import { beginRun, disposeRun, openDevice, trainLoop } from '../engine/dist/index.js';
import { heldOutLoss } from '../engine/dist/evaluation/heldOutLoss.js';
import { fromBfloat16, toBfloat16 } from '../engine/dist/io/halfFloats.js';
import { Llama } from '../engine/dist/model/llama.js';
import { defaultRunSpec, presets } from '../engine/dist/plan/index.js';
import { table } from './table.mjs';
import { preparedText } from './text.mjs';

const { values } = parseArgs({
  options: {
    preset: { type: 'string', default: 'llama-9m' },
    steps: { type: 'string', default: '300' },
    seeds: { type: 'string', default: '3' },
  },
});
const stepCount = Number(values.steps);
const warmStepCount = Math.round(stepCount / 5);
const mainStepCount = stepCount - warmStepCount;
const never = new AbortController().signal;

const dataset = await Dataset.open(await preparedText({ kind: 'bytes' }), { verify: false });
const device = await openDevice({ device: 'native', precision: 'float32' });
const rows = [];
for (let seed = 1; seed <= Number(values.seeds); seed++) await train(seed);
device.close();
await dataset.close();
console.log(
  table(
    [
      'seed',
      'step',
      'loss in float32',
      "W' before",
      "W' after",
      'jump',
      'jump of float32',
      'size of s A B to that of W',
    ],
    rows,
  ),
);

/** Trains, and adds a row for each restart. */
async function train(seed) {
  const spec = defaultRunSpec({
    model: { ...presets[values.preset], vocabSize: 257 },
    dataset: 'datasets/text',
    warmStart: { stepCount: warmStepCount, learningRate: 2e-3 },
    adapter: { rank: 32, alpha: 32, cycleStepCount: Math.ceil(mainStepCount / 3), graph: 'merged' },
    stepCount: mainStepCount,
    learningRate: { peak: 4e-3 },
    batch: { sequenceLength: 256, sequenceCount: 8 },
    precision: 'float32',
    seed,
    evaluation: { everyStepCount: 0, tokenCount: 16_384, finalTokenCount: 16_384 },
    checkpoint: { everyStepCount: 0 },
    device: 'native',
  });
  const runFolder = mkdtempSync(join(tmpdir(), 'relora-jump-'));
  const run = await beginRun({ spec, device, dataset, runFolder, attempt: 1 });
  const { cycleStepCount } = spec.adapter;
  let before;
  for await (const event of trainLoop(run, never)) {
    if (event.kind === 'step' && (event.step + 1 - warmStepCount) % cycleStepCount === 0)
      before = await lossesAt(run);
    if (event.kind !== 'restart') continue;
    const { exact, rounded, merged, size } = before;
    const after = await lossOf(run, run.model);
    const cells = [exact, rounded, merged].map((loss) => loss.toFixed(5));
    rows.push([seed, event.step, ...cells, ...[merged - rounded, after - exact, size].map(short)]);
  }
  disposeRun(run);
  rmSync(runFolder, { recursive: true, force: true });
}

function short(value) {
  return value.toExponential(1);
}

/** Held-out losses before a merge: as trained, with W' from the rounded W, and with W' from the weight that the merge will make. */
async function lossesAt(run) {
  const { model } = run;
  const weights = new Map();
  const [rounded, merged] = [new Map(), new Map()];
  let [change, whole] = [0, 0];
  for (const parameter of model.parameters.values())
    weights.set(parameter.name, await model.valuesOf(parameter));
  for (const layer of model.layers) {
    const base = weights.get(layer.weight.name);
    const sum = await model.mergedWeight(layer);
    merged.set(layer.weight.name, sum.map(asBfloat16));
    rounded.set(
      layer.weight.name,
      sum.map((value, i) => asBfloat16(asBfloat16(base[i]) + (value - base[i]))),
    );
    for (const [i, value] of sum.entries()) {
      change += (value - base[i]) ** 2;
      whole += base[i] ** 2;
    }
  }
  const withWeights = async (changed) => {
    const other = await Llama.fromWeights(device, model.config, async ({ name }) =>
      Float32Array.from(changed.get(name) ?? weights.get(name)),
    );
    const loss = await lossOf(run, other);
    other.dispose();
    return loss;
  };
  return {
    exact: await lossOf(run, model),
    rounded: await withWeights(rounded),
    merged: await withWeights(merged),
    size: Math.sqrt(change / whole),
  };
}

async function lossOf(run, model) {
  const { sequenceLength, sequenceCount } = run.spec.batch;
  const size = { sequenceLength, sequenceCount, tokenCount: run.spec.evaluation.tokenCount };
  const { loss, count } = await heldOutLoss(model, run.result, dataset, size, never);
  return loss / count;
}

function asBfloat16(value) {
  return fromBfloat16(toBfloat16(value));
}
