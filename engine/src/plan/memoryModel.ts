import {
  arePackedOnce,
  chooseGraphs,
  separateGraphs,
  type LayerGraph,
  type LayerGraphs,
} from './adapterGraphs.js';
import { arithmeticOf, isApart, isFused, type Arithmetic, type DeviceSpeed } from './deviceSpeed.js';
import { rankOf } from './layerMethod.js';
import { signBytes } from './nativeSigns.js';
import { asFullRank, fullRankPhases, momentBytes } from './optimizerCost.js';
import { packedBaseBytes, packedBytes } from './packedBytes.js';
import { countParameters, linearShapes } from './parameters.js';
import { targetModules, type Phase, type RunSpec, type TargetModule } from './runSpec.js';
import { Schedule } from './schedule.js';

/** Memory of a trainer at the peak of one of its phases, in bytes, by purpose. */
export interface MemoryParts {
  /** Node, the engine and its libraries. */
  process: number;
  /** Float32 weights in memory, including adapters. */
  weights: number;
  /** Frozen weights in the form that products read. */
  packed: number;
  moments: number;
  gradients: number;
  /** Kept between forward and backward pass. */
  activations: number;
  /** Temporaries of kernels. */
  scratch: number;
  /** Copies for checkpoints and probes. */
  copies: number;
}

/** Remaining memory of a trainer that no other part counts, on Linux with Node 20 (test/e2e/peakMemory). */
const processBytes = 100e6;
/** For the driver's libraries and its context; not measured yet. */
const driverBytes = 400e6;
/** Exponentials that the head keeps for a chunk of rows, which are whole multiples of a block of a product (head_cross_entropy.cpp). */
const headKeptBytes = 72 * 2 ** 20;
const headBlockRows = 256;
const headSlabRows = 1024;
/** Rows that a worker processes at a time (product.h). */
const blockRows = 192;
/** Packing buffers of a worker for products. */
const productWorkerBytes = 288e3;
/** Logits of a probe (probe.ts): the tensor, and copies from before and after a merge. */
const probeLogitsMax = 8 * 2 ** 20;
const probeTokensMax = 256;
/** What a trainer holds at one of its moments, and in which phase that is; null: while weights are loaded, or change their form. */
export interface MemoryMoment {
  phase: Phase | null;
  parts: MemoryParts;
}

/** The moment with the highest memory use. */
export function peakMemory(spec: RunSpec, device: DeviceSpeed): MemoryMoment {
  return memoryMoments(spec, device).reduce((most, moment) =>
    totalOf(moment.parts) > totalOf(most.parts) ? moment : most,
  );
}

/** Memory of a process that generates, evaluates or exports on the CPU from a run's weights: float32 weights and little else. */
export function taskMemoryBytes(spec: RunSpec): number {
  return processBytes + 4 * countParameters(spec).model;
}

export function totalOf(parts: MemoryParts): number {
  return Object.values(parts).reduce((sum: number, bytes: number) => sum + bytes, 0);
}

/** The run's moments among: loading, full-rank steps, the change to adapters, finding their directions, steps with adapters, restart. */
export function memoryMoments(spec: RunSpec, device: DeviceSpeed): MemoryMoment[] {
  // Weights pass through host memory one tensor at a time; cardMemory.ts counts what is on the card.
  if (device.backend === 'cuda') {
    const parts = { ...empty, process: processBytes + driverBytes, copies: 2 * copyBytes(spec) };
    return [{ phase: null, parts }];
  }
  const counts = countParameters(spec);
  const main = steps(spec, device);
  const loading: MemoryParts = { ...empty, process: processBytes, weights: 4 * counts.model };
  const fullRank = fullRankPhases(spec).map(({ phase, as }) => ({ phase, parts: steps(as, device) }));
  if (spec.adapter === null) return [{ phase: null, parts: loading }, ...fullRank];
  // Weights are packed and moved to disk one at a time; while that happens a weight is in memory twice.
  const change = 8 * largestWeight(spec);
  // The moments of the base are freed once the adapters exist.
  const moments = Math.max(0, ...fullRank.map(({ parts }) => parts.moments));
  const attached = { ...loading, weights: main.weights + change, packed: main.packed, moments };
  const attaching = { ...loading, weights: 4 * counts.model + change };
  const adapter = [main];
  if (spec.adapter.initialisation === 'gradientSvd') adapter.push(directions(spec, main, device));
  if (new Schedule(spec).restartCount > 0) adapter.push(atRestart(spec, main, device));
  return [
    ...[loading, attaching, attached].map((parts) => ({ phase: null, parts })),
    ...fullRank,
    ...adapter.map((parts) => ({ phase: 'adapter' as const, parts })),
  ];
}

/**
 * A merge and its check, during which step buffers are freed: logits of a probe, the head packed in float32, and what a start within the
 * old span needs.
 */
function atRestart(spec: RunSpec, main: MemoryParts, device: DeviceSpeed): MemoryParts {
  const { model, batch } = spec;
  const tokens = Math.min(batch.sequenceLength, probeTokensMax, Math.ceil(probeLogitsMax / model.vocabSize));
  return {
    ...main,
    activations: 0,
    scratch: headScratchBytes(spec, layoutOf(spec, device)) + 4 * model.vocabSize * model.hiddenSize,
    copies: 3 * 4 * tokens * model.vocabSize + spanBytes(spec),
  };
}

/**
 * A start within the span of the old A (oldSpan.ts): the next A of every layer with the change of its basis, and for one layer at a time
 * both factors, the columns of A and their orthogonal set, and B before and after R.
 */
function spanBytes({ adapter, model }: RunSpec): number {
  if (adapter?.initialisation !== 'oldSpan' && adapter?.initialisation !== 'halfSpan') return 0;
  const shapes = linearShapes(model);
  const layers = adapter.targetModules.map((module) => {
    const { inFeatures, outFeatures } = shapes[module];
    const rank = rankOf(adapter, module);
    const found = 4 * rank * inFeatures + 8 * rank * rank;
    const working = rank * (4 * (2 * inFeatures + outFeatures) + 16 * (inFeatures + outFeatures));
    return { found, working };
  });
  const found = layers.reduce((sum, layer) => sum + layer.found, 0);
  return model.numHiddenLayers * found + Math.max(...layers.map(({ working }) => working));
}

/** The pass that determines the initial A: gradients of the base, for one half of a block at a time unless micro-batches are summed. */
function directions(spec: RunSpec, main: MemoryParts, device: DeviceSpeed): MemoryParts {
  const fullRank = steps(asFullRank(spec, 'adamw'), device);
  const { adapter, batch, model } = spec;
  const shapes = linearShapes(model);
  const gradientBytes = (modules: readonly TargetModule[]): number =>
    modules.reduce((sum, name) => sum + 4 * shapes[name].inFeatures * shapes[name].outFeatures, 0);
  const adapted = adapter!.targetModules;
  const halves = (['attention', 'mlp'] as const).map((half) =>
    gradientBytes(modulesOf(half).filter((name) => adapted.includes(name))),
  );
  const isSummed = batch.microBatchSequenceCount < batch.sequenceCount;
  const found = adapted.reduce((sum, name) => sum + 4 * rankIn(spec, name) * shapes[name].inFeatures, 0);
  // Float64 vectors of the iteration, for the input and the output side, and float32 copies.
  const vectors = adapted.map(
    (name) => 3 * 8 * rankIn(spec, name) * (shapes[name].inFeatures + shapes[name].outFeatures),
  );
  return {
    ...main,
    gradients:
      Math.max(...halves) + model.numHiddenLayers * (found + (isSummed ? gradientBytes(adapted) : 0)),
    activations: fullRank.activations,
    scratch: fullRank.scratch,
    copies: main.copies + Math.max(...vectors),
  };
}

const empty: MemoryParts = {
  process: 0,
  weights: 0,
  packed: 0,
  moments: 0,
  gradients: 0,
  activations: 0,
  scratch: 0,
  copies: 0,
};

/** Steps of one kind: with adapters, or of all weights. */
function steps(spec: RunSpec, device: DeviceSpeed): MemoryParts {
  const counts = countParameters(spec);
  const { adapter, batch, model } = spec;
  const layout = layoutOf(spec, device);
  const shapes = linearShapes(model);
  const packed =
    adapter === null || device.backend !== 'native'
      ? 0
      : model.numHiddenLayers *
        targetModules.reduce(
          (sum, name) =>
            sum + packedBaseBytes(shapes[name], device.instructionSet, layout.arithmetic.basePrecision),
          0,
        );
  const isMapped = isBaseMapped(spec, device);
  const trained = adapter === null ? counts.model : counts.trainable;
  const isSummed = batch.microBatchSequenceCount < batch.sequenceCount;
  return {
    process: processBytes,
    weights: 4 * (isMapped ? counts.shared : counts.model) + 4 * counts.adapter,
    packed,
    moments: momentBytes(spec, counts),
    gradients: 4 * trained * (isSummed ? 2 : 1),
    activations: activationBytes(spec, device, layout),
    scratch:
      device.backend === 'native' ? scratchBytes(spec, device, layout) : headScratchBytes(spec, layout),
    copies: copyBytes(spec),
  };
}

/** Whether the float32 weights of the base are on disk while adapters are trained (adapterPlan). */
export function isBaseMapped(spec: RunSpec, device: DeviceSpeed): boolean {
  const { graphs } = layoutOf(spec, device);
  return spec.adapter !== null && device.backend === 'native' && arePackedOnce(graphs);
}

interface ComputationLayout {
  arithmetic: Arithmetic;
  graphs: LayerGraphs;
  /** Tokens of a micro-batch. */
  rows: number;
  /** Bytes per element kept between the passes. */
  kept: 2 | 4;
}

function layoutOf(spec: RunSpec, device: DeviceSpeed): ComputationLayout {
  const { batch } = spec;
  const arithmetic = arithmeticOf(spec, device);
  const { precision, basePrecision } = arithmetic;
  const graphs = chooseGraphs(spec, { instructionSet: device.instructionSet, precision });
  const isExact =
    isApart(spec) || (precision === 'float32' && (spec.adapter === null || basePrecision === 'float32'));
  const sequences = Math.min(batch.microBatchSequenceCount, batch.sequenceCount);
  return {
    arithmetic,
    graphs: spec.adapter === null ? separateGraphs : graphs,
    rows: sequences * batch.sequenceLength,
    kept: isExact ? 4 : 2,
  };
}

/** Bytes that each half of a block keeps for its backward pass (State in the halves' kernels); exact. */
export function stateBytes(
  spec: Pick<RunSpec, 'model' | 'adapter'>,
  { graphs, rows, kept }: Pick<ComputationLayout, 'graphs' | 'rows' | 'kept'>,
): { attention: number; mlp: number } {
  const { intermediateSize, numAttentionHeads, qkNorm } = spec.model;
  const { q_proj, k_proj } = linearShapes(spec.model);
  const [width, kvSize] = [q_proj.outFeatures, k_proj.outFeatures];
  const lines = (bytes: number): number => Math.ceil(bytes / 64) * 64;
  const seen = (modules: TargetModule[]): number =>
    modules.reduce((sum, name) => sum + lines(kept * rows * pathRank(spec, name, graphs[name])), 0);
  return {
    attention:
      lines(4 * rows) +
      lines(4 * rows * numAttentionHeads) +
      2 * lines(kept * rows * width) +
      2 * lines(kept * rows * kvSize) +
      (qkNorm ? lines(kept * rows * width) + lines(kept * rows * kvSize) : 0) +
      seen(['q_proj', 'k_proj', 'v_proj', 'o_proj']),
    mlp:
      lines(4 * rows) +
      2 * lines(kept * rows * intermediateSize) +
      seen(['gate_proj', 'up_proj', 'down_proj']),
  };
}

/** Rank of a separate adapter path; 0 if there is none. */
function pathRank(spec: Pick<RunSpec, 'adapter'>, module: TargetModule, graph: LayerGraph): number {
  return graph === 'separate' ? rankIn(spec, module) : 0;
}

/** 0 if the layer has no adapter. */
function rankIn({ adapter }: Pick<RunSpec, 'adapter'>, module: TargetModule): number {
  return adapter?.targetModules.includes(module) ? rankOf(adapter, module) : 0;
}

/** The largest rank of any layer. */
function largestRankIn(spec: Pick<RunSpec, 'adapter'>): number {
  return Math.max(...targetModules.map((module) => rankIn(spec, module)));
}

function modulesOf(half: 'attention' | 'mlp'): TargetModule[] {
  return targetModules.filter((name) => half === (/gate|up|down/.test(name) ? 'mlp' : 'attention'));
}

function activationBytes(spec: RunSpec, device: DeviceSpeed, layout: ComputationLayout): number {
  const { model, recomputation } = spec;
  const { rows } = layout;
  const stream = 4 * rows * model.hiddenSize;
  // The input of each half, plus embedding, final norm and the head's gradient.
  const streams = stream * (2 * model.numHiddenLayers + 4);
  if (!isFused(device)) {
    const { q_proj, k_proj } = linearShapes(model);
    const [width, kvSize] = [q_proj.outFeatures, k_proj.outFeatures];
    const normed = model.qkNorm ? width + kvSize : 0;
    const perToken = 4 * model.hiddenSize + 3 * width + 3 * kvSize + normed + 3 * model.intermediateSize;
    const seen = targetModules.reduce((sum, module) => sum + rankIn(spec, module), 0);
    return streams + 4 * rows * model.numHiddenLayers * (perToken + seen + maskWidth(spec));
  }
  const state = stateBytes(spec, layout);
  const stateCount = recomputation === 'blocks' ? 1 : model.numHiddenLayers;
  return streams + stateCount * (state.attention + state.mlp + 4 * rows * maskWidth(spec));
}

/** Elements of dropout masks per token and block. */
function maskWidth({ model, adapter }: Pick<RunSpec, 'model' | 'adapter'>): number {
  if (adapter === null || adapter.dropout === 0) return 0;
  const shapes = linearShapes(model);
  return adapter.targetModules.reduce((sum, name) => sum + shapes[name].inFeatures, 0);
}

/** Reused buffers of kernels: the arena of the larger half or of an update, the head's, and each worker's. */
function scratchBytes(spec: RunSpec, device: DeviceSpeed, layout: ComputationLayout): number {
  const { hiddenSize, intermediateSize } = spec.model;
  const { q_proj, k_proj } = linearShapes(spec.model);
  const rank = largestRankIn(spec);
  const inner = Math.max(
    2 * intermediateSize + 2 * rank,
    q_proj.outFeatures + 2 * k_proj.outFeatures + 3 * rank,
  );
  // Accumulators of a layer that is summed separately.
  const spare = isApart(spec) ? intermediateSize + rank + 2 * Math.max(intermediateSize, hiddenSize) : 0;
  const worker = 4 * blockRows * (hiddenSize + inner + spare) + productWorkerBytes;
  const arena = Math.max(
    backwardBytes(spec, device, layout, 'attention'),
    backwardBytes(spec, device, layout, 'mlp'),
    signBytes(spec, device, layout.arithmetic.precision),
  );
  return arena + headScratchBytes(spec, layout) + device.threadCount * worker;
}

/** Temporaries of one half's backward pass. */
function backwardBytes(
  spec: RunSpec,
  { instructionSet }: DeviceSpeed,
  { arithmetic, graphs, rows, kept }: ComputationLayout,
  half: 'attention' | 'mlp',
): number {
  const { adapter, model } = spec;
  const shapes = linearShapes(model);
  const { hiddenSize, intermediateSize } = model;
  const kvSize = shapes.k_proj.outFeatures;
  const packed = (height: number, width: number): number =>
    packedBytes(height, width, instructionSet, arithmetic.precision);
  const modules = modulesOf(half);
  const widths = half === 'mlp' ? 3 * intermediateSize : 2 * shapes.q_proj.outFeatures + 2 * kvSize;
  let bytes = rows * ((4 + kept) * hiddenSize + kept * widths);
  for (const name of modules) {
    const { inFeatures, outFeatures } = shapes[name];
    // Unpacked to bfloat16, and that copy packed for the products.
    if (adapter !== null && arithmetic.basePrecision === 'nf4')
      bytes += 2 * inFeatures * outFeatures + packed(outFeatures, inFeatures);
    if (adapter === null) {
      bytes += packed(outFeatures, inFeatures) + packed(rows, outFeatures);
      continue;
    }
    if (!adapter.targetModules.includes(name)) continue;
    const rank = rankOf(adapter, name);
    bytes += kept * rows * rank;
    if (isApart(spec)) bytes += 4 * rows * rank + (adapter.dropout > 0 ? 4 * rows * inFeatures : 0);
    if (graphs[name] === 'weightGradient') bytes += 4 * inFeatures * outFeatures + packed(rows, outFeatures);
    else bytes += packed(outFeatures, rank) + packed(rows, rank);
    if (graphs[name] === 'separate') bytes += packed(rank, inFeatures);
    if (graphs[name] === 'merged') bytes += 4 * rows * rank;
  }
  return bytes;
}

/** One chunk of rows of the head, with the operands of its products. */
function headScratchBytes({ model }: RunSpec, { arithmetic, rows }: ComputationLayout): number {
  const element = arithmetic.precision === 'bfloat16' ? 2 : 4;
  const row = element * (model.vocabSize + 64);
  const fit = Math.max(64, Math.floor(headKeptBytes / row));
  const chunk = Math.min(rows, fit < headBlockRows ? fit : fit - (fit % headBlockRows));
  const slab = element * Math.min(headSlabRows, model.vocabSize) * model.hiddenSize;
  return chunk * (row + 8 * model.hiddenSize) + slab;
}

/** A checkpoint's copy of a tensor. */
function copyBytes(spec: RunSpec): number {
  return 4 * Math.max(spec.model.vocabSize * spec.model.hiddenSize, largestWeight(spec));
}

function largestWeight({ model }: Pick<RunSpec, 'model'>): number {
  return Math.max(
    ...Object.values(linearShapes(model)).map(({ inFeatures, outFeatures }) => inFeatures * outFeatures),
  );
}
