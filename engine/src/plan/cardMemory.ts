import { cardRun, padded, widthOf, type CardRun } from './cardRun.js';
import { cardUpdateBytes } from './cardSigns.js';
import { cardStepMemory } from './cardStepMemory.js';
import type { DeviceSpeed } from './deviceSpeed.js';
import { fullRankPhases, momentBytes } from './optimizerCost.js';
import { countParameters, linearShapes } from './parameters.js';
import { targetModules, type Phase, type RunSpec } from './runSpec.js';

/** Bytes of card memory at the peak of one kind of step, by purpose. */
export interface CardMemoryParts {
  /** Float32 weights and adapters. Frozen weights count 0, as they stay on the host, unless products read float32. */
  weights: number;
  /** Frozen weights in the form that products read, and the same copies of trained weights. */
  packed: number;
  moments: number;
  gradients: number;
  /** Kept between forward and backward pass. */
  activations: number;
  /** Additional temporaries at the most demanding moment of a step. */
  scratch: number;
}

/** For the product library and the tables of updates, allocated with the device. */
const fixedBytes = 2 ** 25 + 2 ** 20;
/** Small buffers lie in slabs of their own, of which the last is partly empty (device/cuda/cardPieces.ts). */
const smallSlabBytes = 2 ** 22;

/** The most demanding phase: full-rank steps if the run has any, steps with adapters, or loading before weights are parked. */
export function cardMemory(spec: RunSpec, device: DeviceSpeed): CardMemoryParts {
  return peakOnCard(spec, device).parts;
}

/** The same, and its phase; null: while weights are loaded. */
export function peakOnCard(
  spec: RunSpec,
  device: DeviceSpeed,
): { phase: Phase | null; parts: CardMemoryParts } {
  const kinds: { phase: Phase | null; parts: CardMemoryParts }[] = fullRankPhases(spec).map(
    ({ phase, as }) => ({ phase, parts: steps(as, device) }),
  );
  if (spec.adapter !== null) {
    if (kinds.length === 0) kinds.push({ phase: null, parts: loaded(spec) });
    kinds.push({ phase: 'adapter', parts: steps(spec, device) });
  }
  return kinds.reduce((most, kind) => (cardBytes(kind.parts) > cardBytes(most.parts) ? kind : most));
}

export function cardBytes(parts: CardMemoryParts): number {
  return Object.values(parts).reduce((sum: number, bytes: number) => sum + bytes, 0);
}

/** After loading: all weights, and nothing else. */
function loaded(spec: RunSpec): CardMemoryParts {
  const nothing = { packed: 0, moments: 0, gradients: 0, activations: 0 };
  return { ...nothing, weights: 4 * countParameters(spec).model, scratch: fixedBytes + smallSlabBytes };
}

function steps(spec: RunSpec, device: DeviceSpeed): CardMemoryParts {
  const { adapter, batch } = spec;
  const counts = countParameters(spec);
  const run = cardRun(spec, device);
  const { activations, scratch } = cardStepMemory(run);
  const trained = adapter === null ? counts.model : counts.trainable;
  const isParked = adapter !== null && run.element === 2;
  const isSummed = batch.microBatchSequenceCount < batch.sequenceCount;
  return {
    weights: 4 * (isParked ? counts.shared + counts.adapter : counts.model + counts.adapter),
    packed: packedBytes(run),
    moments: momentBytes(spec, counts),
    gradients: 4 * trained * (isSummed ? 2 : 1),
    activations,
    scratch: fixedBytes + smallSlabBytes + Math.max(scratch, cardUpdateBytes(run) - activations),
  };
}

/** Products read bfloat16; what adapters are merged into stays float32. */
function packedBytes({ spec, graphs, element, isJoined, rankIn }: CardRun): number {
  const { model, adapter } = spec;
  const shapes = linearShapes(model);
  const { numHiddenLayers: layers, hiddenSize: hidden, vocabSize } = model;
  if (element === 4) {
    const merged = targetModules.filter((name) => adapter !== null && graphs[name] !== 'separate');
    return (
      layers * merged.reduce((sum, name) => sum + 4 * shapes[name].inFeatures * shapes[name].outFeatures, 0)
    );
  }
  const perLayer = targetModules.reduce((sum, name) => {
    const { inFeatures, outFeatures } = shapes[name];
    const isAlone = name === 'o_proj' || name === 'down_proj';
    const width = isJoined && !isAlone ? widthOf(outFeatures) : padded(outFeatures);
    const height = isJoined && name === 'down_proj' ? widthOf(inFeatures) : inFeatures;
    const rank = rankIn(name);
    return sum + 2 * (height * width + (rank === 0 ? 0 : height * padded(rank) + rank * padded(outFeatures)));
  }, 0);
  return layers * perLayer + 2 * vocabSize * padded(hidden);
}
