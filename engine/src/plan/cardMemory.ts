import { chooseGraphs } from './adapterGraphs.js';
import { arithmeticOf, type DeviceSpeed } from './deviceSpeed.js';
import { rankOf } from './layerMethod.js';
import { countParameters, linearShapes } from './parameters.js';
import { targetModules, type RunSpec, type TargetModule } from './runSpec.js';
import { Schedule } from './schedule.js';

/** Bytes of a card at the peak of one kind of step, by what they are. */
export interface CardMemoryParts {
  /** Float32 weights, and adapters. */
  weights: number;
  /** Frozen weights as products read them. */
  packed: number;
  moments: number;
  gradients: number;
  /** What is kept between the passes. */
  activations: number;
  /** Temporaries, each size of which is kept to be used again. */
  scratch: number;
}

/** Of logits in float32, and of their gradients as products read them (device/cuda/head.ts). */
const [logitBytes, gradientBytes] = [2 ** 25, 2 ** 29];
/** Of the library of products, allocated with the device. */
const workspaceBytes = 2 ** 25;
/** What lies unused in the slabs that memory is taken in (device/cuda/slabs.ts): half of the smallest. */
const unusedBytes = 2 ** 25;
/** A moment as an int8 code with a float32 scale for each block of 256. */
const int8MomentBytes = 1 + 4 / 256;

const padded = (columns: number) => Math.ceil(columns / 8) * 8;

/** The kind of step that needs most: of all weights, where the run has those, or with adapters. */
export function cardMemory(spec: RunSpec, device: DeviceSpeed): CardMemoryParts {
  const main = steps(spec, device);
  if (spec.adapter === null || !new Schedule(spec).hasFullRankSteps) return main;
  const fullRank = steps({ ...spec, kind: 'fullRank', adapter: null }, device);
  return cardBytes(fullRank) > cardBytes(main) ? fullRank : main;
}

export function cardBytes(parts: CardMemoryParts): number {
  return Object.values(parts).reduce((sum: number, bytes: number) => sum + bytes, 0);
}

function steps(spec: RunSpec, device: DeviceSpeed): CardMemoryParts {
  const { adapter, batch, model, optimizer, recomputation } = spec;
  const counts = countParameters(spec);
  const shapes = linearShapes(model);
  const { precision } = arithmeticOf(spec, device);
  const element = precision === 'bfloat16' ? 2 : 4;
  const graphs = chooseGraphs(spec, { instructionSet: device.instructionSet, precision });
  const sequences = Math.min(batch.microBatchSequenceCount, batch.sequenceCount);
  const rows = sequences * batch.sequenceLength;
  const { hiddenSize: hidden, intermediateSize: inner, numHiddenLayers: layers, vocabSize } = model;
  const [queries, keys] = [padded(hidden), padded(shapes.k_proj.outFeatures)];
  const rankIn = (name: TargetModule) => (adapter?.targetModules.includes(name) ? rankOf(adapter, name) : 0);
  const attention = ['q_proj', 'k_proj', 'v_proj', 'o_proj'] as const;
  const mlp = ['gate_proj', 'up_proj', 'down_proj'] as const;
  const of = (modules: readonly TargetModule[], bytes: (name: TargetModule) => number) =>
    modules.reduce((sum, name) => sum + bytes(name), 0);
  const hasPath = (name: TargetModule) => rankIn(name) > 0 && graphs[name] === 'separate';

  const packed = (name: TargetModule) => {
    const isMade = element === 2 || graphs[name] !== 'separate';
    return adapter !== null && isMade
      ? element * shapes[name].inFeatures * padded(shapes[name].outFeatures)
      : 0;
  };
  // What a path beside the base keeps: x A, A as it was multiplied, and what dropout made of the input.
  const kept = (name: TargetModule) => {
    if (!hasPath(name)) return 0;
    const { inFeatures } = shapes[name];
    const rank = padded(rankIn(name));
    const dropped = adapter!.dropout > 0 ? rows * (4 * inFeatures + element * padded(inFeatures)) : 0;
    return element * rows * rank + (element === 2 ? 2 * inFeatures * rank : 0) + dropped;
  };
  const isTiled = element === 2 && (hidden / model.numAttentionHeads) % 8 === 0;
  const head = isTiled ? 2 : 4;
  const states = {
    attention: rows * (head * (2 * queries + 2 * keys) + 4 * model.numAttentionHeads) + of(attention, kept),
    mlp: rows * element * 2 * padded(inner) + of(mlp, kept),
  };
  const stream = 4 * rows * hidden;
  const blocks = recomputation === 'blocks' ? 1 : layers;

  // Rounded copies of what is trained, made at each use; sums in float32; x A and dy Bᵀ.
  const layerScratch = (name: TargetModule) => {
    const { inFeatures, outFeatures } = shapes[name];
    if (adapter === null) return element === 2 ? 2 * inFeatures * padded(outFeatures) : 0;
    const rank = rankIn(name);
    if (rank === 0) return 0;
    const factors = element === 2 ? 2 * (inFeatures * padded(rank) + 2 * rank * padded(outFeatures)) : 0;
    return factors + element * rows * padded(rank) * (hasPath(name) ? 1 : 2);
  };
  const sums = (modules: readonly TargetModule[]) =>
    Math.max(0, ...modules.filter(hasPath).map((name) => 4 * rows * shapes[name].outFeatures)) *
    modules.filter(hasPath).length;
  const chunk = (bytes: number, each: number) =>
    Math.min(rows, Math.max(128, Math.floor(bytes / (each * vocabSize) / 128) * 128));
  const gradientRows = chunk(gradientBytes, element);
  const logitRows = Math.min(gradientRows, chunk(logitBytes, 4));
  const headScratch =
    (element === 2 ? 2 * padded(hidden) * (rows + vocabSize) : 0) +
    padded(vocabSize) * (4 * logitRows + element * gradientRows);
  // The norm of x, made again.
  const normed = rows * (element * padded(hidden) + 4);
  const upstream = element === 2 ? 2 * rows * padded(hidden) : 0;
  const attentionScratch =
    upstream + rows * (head * (2 * queries + 2 * keys) + 4 * hidden + 4 * model.numAttentionHeads);
  const mlpScratch = rows * element * 4 * padded(inner);
  const trained = adapter === null ? counts.model : counts.trainable;
  return {
    // Frozen ones go to the host when they are packed. What they leave is cut into pieces that activations do not fit into.
    weights: 4 * (counts.model + counts.adapter),
    packed: layers * of(targetModules, packed),
    moments: 2 * trained * (optimizer.momentType === 'int8' ? int8MomentBytes : 4),
    gradients: 4 * trained * (sequences < batch.sequenceCount ? 2 : 1),
    activations: stream * (2 * layers + 4) + blocks * (states.attention + states.mlp),
    scratch:
      workspaceBytes +
      unusedBytes +
      headScratch +
      normed +
      attentionScratch +
      mlpScratch +
      of(targetModules, layerScratch) +
      sums(attention) +
      sums(mlp),
  };
}
