import type { DeviceDescription } from '../device/device.js';
import { EngineError } from '../engineError.js';
import { headSize } from '../plan/parameters.js';
import type { LlamaConfig } from '../plan/runSpec.js';
import { largestChange, type Probe } from './probe.js';
import type { TrainingRun } from './trainingRun.js';

const float32Epsilon = 2 ** -23;
/** On newer GPUs TensorFlow multiplies float32 in TF32, which has a 10-bit mantissa. */
const tf32Epsilon = 2 ** -10;

/**
 * Allowed change as a multiple of the probable rounding error of all products. Rounding errors of a sum of n terms almost always grow as
 * sqrt(n) (Higham and Mary 2019, doi 10.1137/18M1226312), so 8 leaves room for amplification by norms and softmax; float32 merges stay
 * below a tenth of the limit, a merge rounded to bfloat16 exceeds it a hundredfold.
 */
const driftSafety = 8;

/** A merge changed what the model computes by more than rounding can. The last checkpoint, from before the merge, is usable. */
export class MergeDrift extends EngineError {
  constructor(
    readonly layer: string,
    readonly layerChange: Drift,
    readonly logitChange: Drift,
  ) {
    super(
      'MERGE_DRIFT',
      `A merge changed what ${layer} computes by ${layerChange.largest.toPrecision(3)} of its size, where rounding explains ` +
        `${layerChange.tolerance.toPrecision(3)}, and a logit by ${logitChange.largest.toPrecision(3)}, where it explains ` +
        `${logitChange.tolerance.toPrecision(3)}: the adapter holds values that float32 cannot add to the weight`,
    );
  }
}

/** A change and its limit. */
export interface Drift {
  largest: number;
  tolerance: number;
}

/**
 * Returns the largest change of a logit between two probes and its limit. Throws MergeDrift if it is larger, or if the output of one layer
 * changed by more than rounding of its own sums explains, even if the logits do not show it. Both probes compute in float32 from the
 * float32 weights, so the tolerances hold for every precision of a run.
 */
export function requireSameFunction(
  run: Pick<TrainingRun, 'device' | 'spec'>,
  before: Probe,
  after: Probe,
): { logitChangeMax: number; logitChangeTolerance: number } {
  const { model, batch } = run.spec;
  const logitChange: Drift = {
    largest: largestChange(before.logits, after.logits),
    tolerance:
      relativeTolerance(model, batch.sequenceLength, run.device.description) * largest(before.logits),
  };
  const { layer, change } = mostChangedLayer(run.device.description, before, after);
  if (!isWithin(logitChange) || !isWithin(change)) throw new MergeDrift(layer, change, logitChange);
  return { logitChangeMax: logitChange.largest, logitChangeTolerance: logitChange.tolerance };
}

/**
 * Tolerance relative to the largest logit: epsilon times the sum, over all chained sums between token and logit, of the root of their
 * length.
 */
export function relativeTolerance(
  model: LlamaConfig,
  sequenceLength: number,
  device: Pick<DeviceDescription, 'name'>,
): number {
  const { hiddenSize, intermediateSize, numHiddenLayers } = model;
  // q, k and v are one sum; then scores, weighted values, o; gate and up, down.
  const lengths = [
    hiddenSize,
    headSize(model),
    sequenceLength,
    headSize(model) * model.numAttentionHeads,
    hiddenSize,
    intermediateSize,
  ];
  const block = lengths.reduce((sum, length) => sum + Math.sqrt(length), 0);
  return driftSafety * epsilonOf(device) * (numHiddenLayers * block + Math.sqrt(hiddenSize));
}

/** The layer whose output changed most in relation to its tolerance; change and tolerance are relative to its largest output. */
function mostChangedLayer(
  device: Pick<DeviceDescription, 'name'>,
  before: Probe,
  after: Probe,
): { layer: string; change: Drift } {
  let most = { layer: 'no layer', change: { largest: 0, tolerance: 1 } };
  for (const [layer, outputs] of before.layerOutputs) {
    const change = {
      largest: largestChange(outputs, after.layerOutputs.get(layer)!) / largest(outputs),
      tolerance: driftSafety * epsilonOf(device) * Math.sqrt(layer.inFeatures),
    };
    if (!(change.largest / change.tolerance <= most.change.largest / most.change.tolerance))
      most = { layer: layer.name, change };
  }
  return most;
}

/** False for NaN. */
function isWithin({ largest, tolerance }: Drift): boolean {
  return largest <= tolerance;
}

function epsilonOf({ name }: Pick<DeviceDescription, 'name'>): number {
  return name === 'tensorflow' ? tf32Epsilon : float32Epsilon;
}

/** Largest absolute value; NaN if there is one. */
function largest(values: Float32Array): number {
  let most = 0;
  for (const value of values) {
    if (Number.isNaN(value)) return NaN;
    most = Math.max(most, Math.abs(value));
  }
  return most;
}
