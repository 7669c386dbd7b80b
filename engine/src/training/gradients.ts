import { setImmediate as nextTurn } from 'node:timers/promises';
import { dispose, type Tensor } from '@tensorflow/tfjs-core';
import type { Llama } from '../model/llama.js';
import { addInPlace } from '../ops/addInPlace.js';
import { sumSquares } from '../ops/sumSquares.js';

/** The sequences of one step: inputs and targets are [sequences * time], row by row. */
export interface StepBatch {
  inputs: Int32Array;
  targets: Int32Array;
}

export interface StepShape {
  step: number;
  sequenceLength: number;
  microBatchSequenceCount: number;
  /** Names the streams of dropout. */
  seed: number;
  /** Make activations again in the backward pass instead of keeping them. */
  recompute?: boolean;
}

export interface StepGradients {
  /** Mean over all targets of the step, nats. */
  loss: number;
  /** By parameter; the caller disposes them. */
  gradients: Map<string, Tensor>;
}

/**
 * Loss and gradients of one step, summed over its micro-batches. Each micro-batch weighs as much as it has targets, so
 * the result is that of one large batch. Gives way to the event loop after each of them; null when the signal is
 * aborted, with nothing left behind.
 */
export async function accumulateGradients(
  model: Llama,
  batch: StepBatch,
  shape: StepShape,
  signal: AbortSignal,
): Promise<StepGradients | null> {
  let sum: StepGradients | null = null;

  for (const [micro, { inputs, targets, share }] of microBatches(batch, shape).entries()) {
    await nextTurn(); // messages and signals are handled between micro-batches
    if (signal.aborted) {
      dispose(tensorsOf(sum));
      return null;
    }
    const part = model.valueAndGradients(
      inputs,
      targets,
      inputs.length / shape.sequenceLength,
      shape.sequenceLength,
      {
        lossScale: share,
        dropout: { seed: shape.seed, step: shape.step, micro },
        recompute: shape.recompute ?? false,
      },
    );
    if (sum === null) sum = part;
    else addTo(sum, part);
  }
  if (sum === null) throw new Error('A step needs at least one sequence');
  return sum;
}

export interface MicroBatch extends StepBatch {
  /** Of the step's targets. */
  share: number;
}

/** The sequences of a step as they are computed at once. */
export function microBatches(
  { inputs, targets }: StepBatch,
  { sequenceLength, microBatchSequenceCount }: Pick<StepShape, 'sequenceLength' | 'microBatchSequenceCount'>,
): MicroBatch[] {
  const length = microBatchSequenceCount * sequenceLength;
  const targetCount = Math.max(1, countTargets(targets));
  return Array.from({ length: Math.ceil(inputs.length / length) }, (_, micro) => {
    const [begin, end] = [micro * length, (micro + 1) * length];
    const own = targets.subarray(begin, end);
    return { inputs: inputs.subarray(begin, end), targets: own, share: countTargets(own) / targetCount };
  });
}

/** Euclidean norm over all gradients, summed in float64 in the order of the map. */
export function globalNorm(gradients: ReadonlyMap<string, Tensor>): number {
  return Math.sqrt(sumSquares([...gradients.values()]));
}

/** Factor that brings a norm down to the largest one allowed; 1 below it. */
export function clipScale(norm: number, normMax: number): number {
  return norm > normMax ? normMax / norm : 1;
}

function addTo(sum: StepGradients, part: StepGradients): void {
  sum.loss += part.loss;
  for (const [name, gradient] of part.gradients) {
    addInPlace(sum.gradients.get(name)!, gradient);
    gradient.dispose();
  }
}

/** Targets of -1 stand for "nothing to predict here". */
function countTargets(targets: Int32Array): number {
  let count = 0;
  for (const target of targets) {
    if (target !== -1) count++;
  }
  return count;
}

function tensorsOf(step: StepGradients | null): Tensor[] {
  return step === null ? [] : [...step.gradients.values()];
}
