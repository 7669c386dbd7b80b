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
  /** By parameter; the caller disposes them. Empty when no target counts. */
  gradients: Map<string, Tensor>;
}

/**
 * Loss and gradients of one step, summed over its micro-batches. Each micro-batch weighs as much as it has targets, so
 * the result is that of one large batch; a batch of prompts alone has nothing to give. Gives way to the event loop after each of them; null when the signal is
 * aborted, with nothing left behind.
 */
export async function accumulateGradients(
  model: Llama,
  batch: StepBatch,
  shape: StepShape,
  signal: AbortSignal,
): Promise<StepGradients | null> {
  const microLength = shape.microBatchSequenceCount * shape.sequenceLength;
  const targetCount = countTargets(batch.targets);
  let sum: StepGradients | null = null;

  for (let micro = 0; micro * microLength < batch.inputs.length; micro++) {
    await nextTurn(); // messages and signals are handled between micro-batches
    if (signal.aborted) {
      dispose(tensorsOf(sum));
      return null;
    }
    const inputs = batch.inputs.subarray(micro * microLength, (micro + 1) * microLength);
    const targets = batch.targets.subarray(micro * microLength, (micro + 1) * microLength);
    const ownCount = countTargets(targets);
    if (ownCount === 0) continue;
    const part = model.valueAndGradients(
      inputs,
      targets,
      inputs.length / shape.sequenceLength,
      shape.sequenceLength,
      {
        lossScale: ownCount / targetCount,
        dropout: { seed: shape.seed, step: shape.step, micro },
        recompute: shape.recompute ?? false,
      },
    );
    if (sum === null) sum = part;
    else addTo(sum, part);
  }
  return sum ?? { loss: 0, gradients: new Map() };
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
