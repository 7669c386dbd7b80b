import type { LinearLayer } from '../model/linearLayer.js';
import { countTargets } from '../model/llama.js';
import { Random } from '../random.js';
import type { TrainingRun } from './trainingRun.js';

/** Logits that the probe may hold, twice: 32 MiB. */
const probeLogitsMax = 8 * 1024 ** 2;
const probeTokensMax = 256;

/** What the model computes at one moment: a restart must not change it. */
export interface Probe {
  /** On the first tokens of the run's first sequence, in float32 from the float32 weights, whatever the run's precision. */
  logits: Float32Array;
  /**
   * Loss on the same tokens in the arithmetic of the run, nats per token: unlike the logits it shows what a base loses that is
   * packed again into fewer bits.
   */
  loss: number;
  /** What each adapted layer makes of one fixed random row, in float32: shows which layer it was when logits change. */
  layerOutputs: Map<LinearLayer, Float32Array>;
}

export async function takeProbe(run: TrainingRun): Promise<Probe> {
  const { model, spec, device, result } = run;
  const tokenCount = Math.min(
    spec.batch.sequenceLength,
    probeTokensMax,
    Math.ceil(probeLogitsMax / model.config.vocabSize),
  );
  const batch = await run.batches.read(0, 1);
  const inputs = batch.inputs.slice(0, tokenCount);
  const targets = batch.targets.slice(0, tokenCount);
  device.clearResult(result);
  model.addLoss({ inputs, targets, batch: 1, time: tokenCount }, result);
  const { lossSum } = await device.readResult(result);
  const layerOutputs = new Map<LinearLayer, Float32Array>();
  for (const layer of model.layers) {
    // By module: a merge before full-rank steps takes the adapters away.
    if (!spec.adapter?.targetModules.includes(layer.module)) continue;
    layerOutputs.set(layer, await model.layerOutput(layer, probeRow(layer, spec.seed)));
  }
  return {
    logits: await model.logits(inputs, 1, tokenCount, { precision: 'float32' }),
    loss: lossSum / countTargets(targets),
    layerOutputs,
  };
}

/** Largest absolute difference between two arrays of the same length; NaN if there is one. */
export function largestChange(before: Float32Array, after: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < before.length; i++) {
    const change = Math.abs(after[i]! - before[i]!);
    if (Number.isNaN(change)) return NaN;
    if (change > largest) largest = change;
  }
  return largest;
}

/** Random, so that no change of a weight can hide in a direction that it does not have. */
function probeRow({ name, inFeatures }: LinearLayer, seed: number): Float32Array {
  const row = new Float32Array(inFeatures);
  Random.forStream(seed, 'probe', name).fillNormal(row, 1);
  return row;
}
