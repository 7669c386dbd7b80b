import type { LinearLayer } from '../model/linearLayer.js';
import { countTargets } from '../model/llama.js';
import { Random } from '../random.js';
import type { TrainingRun } from './trainingRun.js';

/** Most logits of a probe, of which two are kept at a time: 32 MiB each. */
const probeLogitsMax = 8 * 1024 ** 2;
const probeTokensMax = 256;
/** More are not read in search of a target, since a data set may have hardly any. */
const searchedSequencesMax = 1024;

/** What the model computes at one moment: a restart must not change it. */
export interface Probe {
  /** Logits of the first tokens of the run's first sequence, in float32 from the float32 weights, whatever the run's precision. */
  logits: Float32Array;
  /**
   * Loss in the run's precision, in nats per token, on the same tokens, or the first ones with a target if these have none: unlike the
   * logits it shows what is lost when the base is repacked into fewer bits. NaN if none of the first sequences has a target.
   */
  loss: number;
  /** Output of each adapted layer for one fixed random row, in float32: shows which layer caused a change of the logits. */
  layerOutputs: Map<LinearLayer, Float32Array>;
}

export async function takeProbe(run: TrainingRun): Promise<Probe> {
  const { model, spec } = run;
  const tokenCount = Math.min(
    spec.batch.sequenceLength,
    probeTokensMax,
    Math.ceil(probeLogitsMax / model.config.vocabSize),
  );
  const batch = await run.batches.read(0, 1);
  const loss = await probeLoss(run, tokenCount);
  const layerOutputs = new Map<LinearLayer, Float32Array>();
  for (const layer of model.layers) {
    // By module name, because a merge before full-rank steps removes the adapters.
    if (!spec.adapter?.targetModules.includes(layer.module)) continue;
    layerOutputs.set(layer, await model.layerOutput(layer, probeRow(layer, spec.seed)));
  }
  return {
    logits: await model.logits(batch.inputs.slice(0, tokenCount), 1, tokenCount, { precision: 'float32' }),
    loss,
    layerOutputs,
  };
}

/** A prompt has no targets, and may be longer than a probe or a sequence. */
async function probeLoss(
  { model, device, result, batches }: TrainingRun,
  tokenCount: number,
): Promise<number> {
  for (let sequence = 0; sequence < searchedSequencesMax; sequence++) {
    const batch = await batches.read(sequence, 1);
    const first = batch.targets.findIndex((target) => target !== -1);
    if (first === -1) continue;
    const start = Math.min(first - (first % tokenCount), batch.targets.length - tokenCount);
    const inputs = batch.inputs.slice(start, start + tokenCount);
    const targets = batch.targets.slice(start, start + tokenCount);
    device.clearResult(result);
    model.addLoss({ inputs, targets, batch: 1, time: tokenCount }, result);
    const { lossSum } = await device.readResult(result);
    return lossSum / countTargets(targets);
  }
  return NaN;
}

/** Largest absolute difference between two arrays of the same length; NaN if any value is. */
export function largestChange(before: Float32Array, after: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < before.length; i++) {
    const change = Math.abs(after[i]! - before[i]!);
    if (Number.isNaN(change)) return NaN;
    if (change > largest) largest = change;
  }
  return largest;
}

/** Random, so that any change of a weight shows up with near certainty. */
function probeRow({ name, inFeatures }: LinearLayer, seed: number): Float32Array {
  const row = new Float32Array(inFeatures);
  Random.forStream(seed, 'probe', name).fillNormal(row, 1);
  return row;
}
