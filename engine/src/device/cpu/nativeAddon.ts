import { findNativeAddon, loadNativeFile } from '../../binaries/nativeFiles.js';
import type { LayerGraph } from '../../plan/adapterGraphs.js';
import type { ReductionType } from '../../plan/words.js';
import type { BasePrecision, MatmulShape, ProductPrecision } from '../device.js';

/**
 * The whole native interface, typed in one place. Conventions:
 * - every array is a row-major Float32Array unless stated otherwise; shapes are in brackets;
 * - outputs come first, then inputs, then dimensions, then options; related arguments form a struct, whose fields are named in errors;
 * - outputs are overwritten, never read, unless the name says `accumulate`; outputs and inputs never overlap;
 * - a wrong type throws a TypeError, a wrong length or value a RangeError, before any memory is touched;
 * - a PackedBase works with the instruction set it was packed under, with any number of threads;
 * - results do not depend on the number of threads.
 */
export interface NativeAddon {
  describe(): NativeDescription;

  /** Memory allocated by the addon itself in this process: packed bases and scratch memory of kernels. Arrays belong to JavaScript. */
  allocations(): { count: number; bytes: number };

  /** Number of calls so far, by function name. */
  callCounts(): Record<string, number>;

  /** The same functions with their own instruction set, threads, memory and counts. Throws on an instruction set that this CPU lacks. */
  open(options: NativeOptions): NativeAddon;

  /** Sets the instruction set and the number of threads for all later calls. Throws on an instruction set that this CPU lacks. */
  configure(options: NativeOptions): void;

  /** c[batch, m, n] = op(a) op(b), op(a) is [m, k] and op(b) is [k, n]; a transposed operand is stored the other way round. */
  matmul(
    c: Float32Array,
    a: Float32Array,
    b: Float32Array,
    shape: NativeMatmulShape,
    precision: ProductPrecision,
  ): void;

  /** Packs a frozen base w[inFeatures, outFeatures] once for both y = x w and dx = dy wᵀ. Freed by `releaseBase` or the collector. */
  packBase(w: Float32Array, inFeatures: number, outFeatures: number, precision: BasePrecision): PackedBase;
  /** Packs another w of the same size into the memory of `base`. */
  repackBase(base: PackedBase, w: Float32Array): void;
  packedBaseBytes(base: PackedBase): number;
  releaseBase(base: PackedBase): void;

  /** y[rows, out] = x[rows, in] w + scale (x a) b; also returns xa[rows, rank] for the backward pass. Null without an adapter. */
  linearForward(
    y: Float32Array,
    xa: Float32Array | null,
    x: Float32Array,
    layer: FrozenLayer,
    rows: number,
  ): void;

  /**
   * p = scale dy bᵀ; dx = dy wᵀ + p aᵀ; db = scale (xa)ᵀ dy; da = xᵀ p. No in×out gradient is ever computed. Without an adapter only dx is
   * written and the others are null; if a is frozen, da is null. dx[rows, in], da[in, rank], db[rank, out].
   */
  linearBackward(
    dx: Float32Array,
    da: Float32Array | null,
    db: Float32Array | null,
    dy: Float32Array,
    x: Float32Array | null,
    xa: Float32Array | null,
    layer: FrozenLayer,
    rows: number,
  ): void;

  /** Packs w + scale a b into the memory of `base`: the base of a merged graph, made once a step. */
  packMerged(
    base: PackedBase,
    w: Float32Array,
    a: Float32Array,
    b: Float32Array,
    scale: number,
    rank: number,
  ): void;

  /**
   * merged = w + scale a b, with the delta summed separately in float32. If `finite` is false, merged must not be used. Norm is Frobenius,
   * float64.
   */
  mergeAdapter(
    merged: Float32Array,
    w: Float32Array,
    a: Float32Array,
    b: Float32Array,
    scale: number,
    inFeatures: number,
    rank: number,
    outFeatures: number,
  ): { finite: boolean; deltaNorm: number };

  /** y[rows, dim] = x * rstd * gain, rstd[rows] = 1 / sqrt(mean(x²) + epsilon). */
  rmsNormForward(
    y: Float32Array,
    rstd: Float32Array,
    x: Float32Array,
    gain: Float32Array,
    rows: number,
    dim: number,
    epsilon: number,
  ): void;
  rmsNormBackward(
    dx: Float32Array,
    dgain: Float32Array,
    dy: Float32Array,
    x: Float32Array,
    gain: Float32Array,
    rstd: Float32Array,
    rows: number,
    dim: number,
  ): void;

  /**
   * Rotary embedding, half-split: x[batch, time, heads, headDim]; cos and sin are [>= firstPosition + time, headDim / 2].
   * inverse rotates back, which is the backward pass.
   */
  rotary(
    y: Float32Array,
    x: Float32Array,
    angles: NativeAngles,
    shape: Record<'batch' | 'time' | 'heads' | 'headDim' | 'firstPosition', number>,
    inverse: boolean,
  ): void;

  /**
   * Causal attention in tiles: a [time, time] matrix is never stored. q, out: [batch, time, heads * headDim]; k, v: [batch, time, kvHeads *
   * headDim], query head h uses key head floor(h * kvHeads / heads); logSumExp[batch, heads, time] is kept for the backward pass.
   */
  attentionForward(
    out: Float32Array,
    logSumExp: Float32Array,
    heads: NativeHeads,
    shape: NativeAttentionShape,
    precision: ProductPrecision,
  ): void;
  attentionBackward(
    gradients: NativeHeads,
    dout: Float32Array,
    heads: NativeHeads,
    out: Float32Array,
    logSumExp: Float32Array,
    shape: NativeAttentionShape,
    precision: ProductPrecision,
  ): void;

  /**
   * The second half of a block: y = x + down(silu(gate(n)) * up(n)), n = x / rms(x) * gain. x, y[rows, hidden]. `state` (of
   * `mlpHalfStateLength` floats, opaque) is kept for the backward pass, in bfloat16 if the half is `compact`; null if there is no backward
   * pass. y null: only the state is recomputed.
   */
  mlpHalfForward(
    half: NativeMlpHalf,
    x: Float32Array,
    y: Float32Array | null,
    state: Float32Array | null,
  ): void;
  mlpHalfBackward(
    half: NativeMlpHalf,
    x: Float32Array,
    state: Float32Array,
    dy: Float32Array,
    gradients: NativeGradients<'gate' | 'up' | 'down'>,
  ): void;
  mlpHalfStateLength(half: NativeMlpHalf): number;

  /** The first half of a block: y = x + o(attention(rotary(q(n)), rotary(k(n)), v(n))); otherwise like `mlpHalfForward`. */
  attentionHalfForward(
    half: NativeAttentionHalf,
    x: Float32Array,
    y: Float32Array | null,
    state: Float32Array | null,
  ): void;
  attentionHalfBackward(
    half: NativeAttentionHalf,
    x: Float32Array,
    state: Float32Array,
    dy: Float32Array,
    gradients: NativeGradients<'q' | 'k' | 'v' | 'o'> & { headNorms: NativeHeadNorms | null },
  ): void;
  attentionHalfStateLength(half: NativeAttentionHalf): number;

  /** h = silu(gate) * up, elementwise over the whole arrays. */
  swigluForward(h: Float32Array, gate: Float32Array, up: Float32Array): void;
  swigluBackward(
    dgate: Float32Array,
    dup: Float32Array,
    dh: Float32Array,
    gate: Float32Array,
    up: Float32Array,
  ): void;

  /** y[rows, dim] = table[ids]; ids are checked against vocabulary. */
  embeddingForward(
    y: Float32Array,
    table: Float32Array,
    ids: Int32Array,
    rows: number,
    vocabulary: number,
    dim: number,
  ): void;
  /** dtable is zeroed, then dy is added at ids, in row order. */
  embeddingBackward(
    dtable: Float32Array,
    dy: Float32Array,
    ids: Int32Array,
    rows: number,
    vocabulary: number,
    dim: number,
  ): void;

  /**
   * Next-token loss without ever storing [rows, vocabulary]: logits = x headᵀ are computed for a chunk of rows at a time in one scratch
   * buffer. head[vocabulary, hidden]. losses[rows] in nats; a target of -1 is ignored (loss 0, no gradient). dx[rows, hidden] and
   * dhead[vocabulary, hidden] are gradients of gradientScale * sum(losses); pass null for loss only, dhead null for dx only. With `inInt8`
   * the logits and dx are products of int8, and only dhead has the precision.
   */
  headCrossEntropy(
    losses: Float32Array,
    dx: Float32Array | null,
    dhead: Float32Array | null,
    x: Float32Array,
    head: Float32Array,
    targets: Int32Array,
    shape: Record<'rows' | 'hidden' | 'vocabulary' | 'gradientScale', number> & { inInt8: boolean },
    precision: ProductPrecision,
  ): void;

  /** The dropout mask of version 2 for whole sequences of `sequenceLength` elements: engine/src/device/dropout.ts. */
  dropoutMask(mask: Float32Array, options: DropoutStream): void;

  /** Sum of squares of all arrays in float64, in an order that depends only on their lengths. */
  sumSquares(arrays: Float32Array[]): number;

  /**
   * One AdamW update in place (Loshchilov & Hutter 2019, decoupled decay) of each parameter with its moments and its
   * gradient, in one pass. g = gradientScale * gradient; correction1 = 1 - beta1^t, correction2 = 1 - beta2^t:
   * p -= learningRate * (weightDecay * p + (m / correction1) / (sqrt(v / correction2) + epsilon)).
   */
  adamWInPlace(
    parameters: Float32Array[],
    firstMoments: Float32Array[],
    secondMoments: Float32Array[],
    gradients: Float32Array[],
    options: AdamWOptions,
  ): void;

  /** The same with 8-bit moments (native/kernels/moment_codes.h) that have one scale per 256 values. */
  codedAdamWInPlace(
    parameters: Float32Array[],
    firstCodes: Int8Array[],
    firstScales: Float32Array[],
    secondCodes: Uint8Array[],
    secondScales: Float32Array[],
    gradients: Float32Array[],
    options: AdamWOptions,
  ): void;

  /** One Muon update of matrices of the same shape, in place; defined by engine/src/device/tfjs/matrixOptimizers.ts. */
  muonInPlace(
    shape: Record<'rows' | 'columns', number>,
    matrices: NativeMatrices,
    options: NativeMuonOptions,
  ): void;

  /** One LoRA-Muon update of adapters of the same shape, in place. Without gradients, a is only read. */
  loraMuonInPlace(
    shape: Record<'inFeatures' | 'outFeatures' | 'rank', number>,
    a: NativeMatrices,
    b: NativeMatrices,
    scale: number,
    options: NativeMuonOptions,
  ): void;

  /**
   * One APOLLO-Mini update of matrices of the same shape, in place. A projection has the length of the smaller side, moments that of the
   * larger one, norms have one element each.
   */
  apolloMiniInPlace(
    shape: Record<'rows' | 'columns', number>,
    matrices: Record<
      'parameters' | 'gradients' | 'projections' | 'first' | 'second' | 'norms',
      Float32Array[]
    >,
    options: AdamWOptions,
  ): void;

  /** accumulator += x, in place. */
  addInPlace(accumulator: Float32Array, x: Float32Array): void;

  /** Singular values of matrix[rows, columns], largest first, min(rows, columns) of them, computed in float64. */
  singularValues(matrix: Float32Array, rows: number, columns: number): Float64Array;

  /**
   * Floats in an unnamed file in `folder`, which the operating system may keep on disk only. Disk space is allocated at once; throws if
   * there is not enough. `releasePages` removes the file's pages from this process's memory: only for arrays of `mapFloats`, whose values
   * stay.
   */
  mapFloats(folder: string, count: number): Float32Array;
  releasePages(mapped: Float32Array): void;

  /** Frees the memory of a buffer now instead of at the next garbage collection. The buffer and its views are empty from then on. */
  freeBuffer(buffer: ArrayBuffer): void;

  /**
   * Memory shared by processes: an open file that each of them maps with the same length, as member `rank` of `size`. All members must make
   * the same calls below in the same order, one at a time; they are rejected (ERR_MEMBER_LOST) if a member left or makes a different call.
   * Arguments must not be touched until the call is settled.
   */
  openSharedMemory(file: number, rank: number, size: number): NativeExchange;
  /** The same over MPI, with the library of that name; returns this member's rank. Leaving waits for the others. */
  openMpi(library: string): { rank: number; size: number; exchange: NativeExchange };
  /**
   * Replaces values by their sum over all members, added in the order of their ranks; values are exchanged in that type. The first `written`
   * values are final; the others are exchanged when `exchangeReach` says so, and may be written until then.
   */
  exchangeSum(
    exchange: NativeExchange,
    values: Float32Array,
    type: ReductionType,
    written: number,
  ): Promise<void>;
  /** Now the first `count` values of the pending sum are final. */
  exchangeReach(exchange: NativeExchange, count: number): void;
  /** The pending sum is rejected as soon as it waits for values; the other members wait for this one until it leaves. */
  exchangeAbandon(exchange: NativeExchange): void;
  /** all[size * own.length] */
  exchangeGather(exchange: NativeExchange, all: Uint8Array, own: Uint8Array): Promise<void>;
  exchangeLeave(exchange: NativeExchange): void;

  /** Returns unused heap pages to the operating system. */
  trimHeap(): void;

  /**
   * Measured peak of the configured set: best GFLOP/s (for int8, GOP/s) of the products' inner loop on operands in the L1 cache, on all
   * configured threads, for about `milliseconds`.
   */
  measurePeak(precision: BasePrecision, milliseconds: number): number;
}

export interface NativeMatmulShape extends MatmulShape {
  /** Number of products, stored one after another. */
  batch: number;
}

/** A frozen base, with or without an adapter. */
export interface FrozenLayer {
  base: PackedBase;
  adapter: Omit<NativeAdapter, 'graph' | 'mask'> | null;
}

/** [positions, headDim / 2] */
export interface NativeAngles {
  cos: Float32Array;
  sin: Float32Array;
}

/** Queries, keys and values, or their gradients. */
export type NativeHeads = Record<'q' | 'k' | 'v', Float32Array>;

export interface NativeAttentionShape extends Record<
  'batch' | 'time' | 'heads' | 'kvHeads' | 'headDim' | 'scale',
  number
> {
  /** [batch * time]: where, within its sequence, the document of each position begins; null: at 0. */
  documents: Int32Array | null;
}

/** Integers are taken modulo 2^32, except for the seed. */
export interface DropoutStream {
  share: number;
  seed: number;
  step: number;
  firstSequence: number;
  /** Its index among all layers. */
  layer: number;
  /** Elements of one sequence. */
  sequenceLength: number;
}

export interface NativeOptions {
  instructionSet: InstructionSet | ModelledInstructionSet;
  threads: number;
}

export interface AdamWOptions {
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  correction1: number;
  correction2: number;
  gradientScale: number;
}

/** First moments in float32, or in 8 bits with one scale per 256 values. */
export type NativeMoments =
  | { values: Float32Array[]; codes: null; scales: null }
  | { values: null; codes: (Int8Array | Uint8Array)[]; scales: Float32Array[] };

/** Matrices of one shape. */
export interface NativeMatrices {
  parameters: Float32Array[];
  /** Null if the matrices are not trained. */
  gradients: Float32Array[] | null;
  moments: NativeMoments | null;
}

/** Opaque handle for communication between the members of a run, made by `openSharedMemory` or `openMpi`. */
export interface NativeExchange {
  readonly exchange: unique symbol;
}

export interface NativeMuonOptions {
  learningRate: number;
  momentum: number;
  weightDecay: number;
  gradientScale: number;
  /** For the products that compute the sign. */
  precision: ProductPrecision;
}

/** One layer of a half: its packed base, or null and its trained weight[in, out]; only a layer with a base can have an adapter. */
export interface NativeLayer {
  base: PackedBase | null;
  /** Not read if there is a base. */
  weight: Float32Array | null;
  adapter: NativeAdapter | null;
  /** [out]; null: no bias. Only queries, keys and values may have one. */
  bias: Float32Array | null;
}

export interface NativeAdapter {
  rank: number;
  /** [in, rank] */
  a: Float32Array;
  /** [rank, out] */
  b: Float32Array;
  scale: number;
  graph: LayerGraph;
  /** [rows, in], for its input: 0, or the factor of elements that are kept; null: no dropout. Only in a half that is `apart`. */
  mask: Float32Array | null;
}

/**
 * Null for gradients that are not wanted: of a trained weight, or of a frozen one without an adapter; of a and b; of the g in scale =
 * tanh(g), only in a half that is `apart`.
 */
export interface NativeLayerGradients {
  weight: Float32Array | null;
  a: Float32Array | null;
  b: Float32Array | null;
  scale: Float32Array | null;
  bias: Float32Array | null;
}

/** Gradients of a half: its input, its gain and its layers. */
export type NativeGradients<Layers extends string> = Record<'dx' | 'gain', Float32Array> &
  Record<Layers, NativeLayerGradients>;

interface NativeHalf {
  /** [hidden] */
  gain: Float32Array;
  epsilon: number;
  precision: ProductPrecision;
  /** State for the backward pass is kept in bfloat16. */
  compact: boolean;
  /** Each product is rounded and then added: for halves with dropout or a trained scale. Supports neither `compact` nor merged graphs. */
  apart: boolean;
}

export interface NativeMlpHalf extends NativeHalf, Record<'gate' | 'up' | 'down', NativeLayer> {
  shape: { rows: number; hidden: number; intermediate: number };
}

export interface NativeAttentionHalf extends NativeHalf, Record<'q' | 'k' | 'v' | 'o', NativeLayer> {
  shape: Record<'batch' | 'time' | 'hidden' | 'heads' | 'kvHeads' | 'headDim', number>;
  /** [>= time, headDim / 2]; both null: queries and keys are not rotated. */
  cos: Float32Array | null;
  sin: Float32Array | null;
  headNorms: NativeHeadNorms | null;
  /** [batch * time]: where, within its sequence, the document of each position begins; null: at 0. */
  documents: Int32Array | null;
}

/** Gains [headDim] of the norms of heads, or their gradients. */
export type NativeHeadNorms = Record<'q' | 'k', Float32Array>;

/**
 * Best first, but that Intel's processors prefer `avx512` to `avx512bf16`, whose instruction is slower there. `amx` needs tiles for bfloat16 and int8, a Linux that saves tile state, and avx512bf16; `avx512bf16` also needs
 * avx512f/bw/vl/dq; `avx2` also needs fma. On ARM `neonBf16` needs BFMMLA and dot products, `neonDot` dot products.
 */
export const instructionSets = [
  'amx',
  'avx512bf16',
  'avx512',
  'avx2',
  'neonBf16',
  'neonDot',
  'neon',
  'portable',
] as const;
export type InstructionSet = (typeof instructionSets)[number];

/** Emulate `amx` and `neonBf16` with plain arithmetic on any machine: only for tests, never offered or chosen. */
export type ModelledInstructionSet = 'amx-model' | 'neonBf16-model';

/*
 * An int8 base scales w symmetrically to [-127, 127], per output for y = x w and per input for dx = dy wᵀ, and scales x or dy per row on
 * the fly; integer sums are exact. A row or column of w with a value that is not finite makes the results that depend on it NaN. Its
 * adapter is computed in bfloat16. nf4 stores w once, as 4-bit NormalFloat with a scale per 64 values, and unpacks it to bfloat16 for each
 * pass: an eighth of the memory, at some cost in time.
 */
export type { BasePrecision, ProductPrecision };

/** Opaque handle of panels packed by `packBase`. */
export interface PackedBase {
  readonly packedBase: unique symbol;
}

export interface NativeDescription {
  /** Sets this CPU and operating system support, best first. */
  instructionSets: InstructionSet[];
  /** How int8 is multiplied with the best set: 'vnni' and 'i8mm' are features separate from avx512 and bfloat16. */
  int8: 'amx' | 'vnni' | 'avx2' | 'i8mm' | 'dot' | 'neon' | 'portable';
  /** CPUs this process may use: affinity mask and cgroup quota, rounded up. */
  threadsMax: number;
  cpuModel: string;
}

/**
 * Loads the addon compiled here or the one from a package, as RELORA_NATIVE says. Throws NativeUnusable, which says what to do, if it
 * cannot be loaded.
 */
export function loadNativeAddon(): NativeAddon {
  return loadNativeFile(findNativeAddon()) as NativeAddon;
}
