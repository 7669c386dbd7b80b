import { findNativeAddon, loadNativeFile } from '../../binaries/nativeFiles.js';
import type { LayerGraph } from '../../plan/adapterGraphs.js';
import type { ReductionType } from '../../plan/words.js';
import type { BasePrecision, MatmulShape, ProductPrecision } from '../device.js';

/**
 * The whole native surface, typed in one place. Conventions:
 * - every array is a row-major Float32Array unless said otherwise; shapes stand in brackets;
 * - outputs come first, then inputs, then dimensions, then options; what belongs together is a struct, whose fields are named in errors;
 * - outputs are overwritten, never read, unless the name says `accumulate`; outputs and inputs never overlap;
 * - a wrong type throws a TypeError, a wrong length or value a RangeError, before any memory is touched;
 * - a PackedBase works with the instruction set it was packed under, whatever the number of threads;
 * - results do not depend on the number of threads.
 */
export interface NativeAddon {
  describe(): NativeDescription;

  /** Memory that the addon itself holds now in this process: packed bases and what kernels reuse. Arrays belong to JavaScript. */
  allocations(): { count: number; bytes: number };

  /** Calls so far, by the names of the functions here. */
  callCounts(): Record<string, number>;

  /** The same functions with an instruction set, threads, memory and counts of their own. Throws on a set that this CPU lacks. */
  open(options: NativeOptions): NativeAddon;

  /** Chooses the instruction set and the number of threads for everything after it. Throws on a set this CPU lacks. */
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
  /** Another w of the same size, into the memory that `base` has. */
  repackBase(base: PackedBase, w: Float32Array): void;
  packedBaseBytes(base: PackedBase): number;
  releaseBase(base: PackedBase): void;

  /** y[rows, out] = x[rows, in] w + scale (x a) b; also gives xa[rows, rank] for the backward pass. Null without an adapter. */
  linearForward(
    y: Float32Array,
    xa: Float32Array | null,
    x: Float32Array,
    layer: FrozenLayer,
    rows: number,
  ): void;

  /**
   * p = scale dy bᵀ; dx = dy wᵀ + p aᵀ; db = scale (xa)ᵀ dy; da = xᵀ p. No in×out gradient is ever formed.
   * Without an adapter only dx, and the others null; da null: a is frozen. dx[rows, in], da[in, rank], db[rank, out].
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

  /** Packs w + scale a b in place of what `base` held: the base of a merged graph, made once a step. */
  packMerged(
    base: PackedBase,
    w: Float32Array,
    a: Float32Array,
    b: Float32Array,
    scale: number,
    rank: number,
  ): void;

  /** merged = w + scale a b, the delta summed apart in float32. `finite` false: merged must not be used. Norm is Frobenius, float64. */
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
   * Causal attention in tiles: [time, time] is never held. q, out: [batch, time, heads * headDim];
   * k, v: [batch, time, kvHeads * headDim], query head h reads key head floor(h * kvHeads / heads);
   * logSumExp[batch, heads, time] is kept for the backward pass.
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
   * The second half of a block: y = x + down(silu(gate(n)) * up(n)), n = x / rms(x) * gain. x, y[rows, hidden].
   * `state` (of `mlpHalfStateLength` floats, opaque) is kept for the backward pass, in bfloat16 when the half is `compact`; null
   * when there will be none. y null: only the state is made again.
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

  /** The first half of a block: y = x + o(attention(rotary(q(n)), rotary(k(n)), v(n))); as `mlpHalfForward`. */
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
   * Next-token loss without ever holding [rows, vocabulary]: logits = x headᵀ are made a chunk of rows at a time in one
   * scratch buffer. head[vocabulary, hidden]. losses[rows] in nats; a target of -1 is ignored (loss 0, no gradient).
   * dx[rows, hidden] and dhead[vocabulary, hidden] are gradients of gradientScale * sum(losses); pass null for loss only,
   * dhead null for dx only.
   */
  headCrossEntropy(
    losses: Float32Array,
    dx: Float32Array | null,
    dhead: Float32Array | null,
    x: Float32Array,
    head: Float32Array,
    targets: Int32Array,
    shape: Record<'rows' | 'hidden' | 'vocabulary' | 'gradientScale', number>,
    precision: ProductPrecision,
  ): void;

  /** The mask of dropout of version 2 for whole sequences of `sequenceLength` elements: engine/src/device/dropout.ts. */
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

  /** The same with moments in eight bits (native/kernels/moment_codes.h) and a scale for every 256 of them. */
  codedAdamWInPlace(
    parameters: Float32Array[],
    firstCodes: Int8Array[],
    firstScales: Float32Array[],
    secondCodes: Uint8Array[],
    secondScales: Float32Array[],
    gradients: Float32Array[],
    options: AdamWOptions,
  ): void;

  /** One update of matrices of one shape by Muon, in place: engine/src/device/tfjs/matrixOptimizers.ts defines it. */
  muonInPlace(
    shape: Record<'rows' | 'columns', number>,
    matrices: NativeMatrices,
    options: NativeMuonOptions,
  ): void;

  /** One update of adapters of one shape by LoRA-Muon, in place. Without gradients a is only read. */
  loraMuonInPlace(
    shape: Record<'inFeatures' | 'outFeatures' | 'rank', number>,
    a: NativeMatrices,
    b: NativeMatrices,
    scale: number,
    options: NativeMuonOptions,
  ): void;

  /**
   * One update of matrices of one shape by APOLLO-Mini, in place. A projection has the length of the smaller side, moments that of the
   * larger one, norms one element each.
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
   * Floats behind a nameless file in `folder`, which the operating system may keep on disk alone. Its space is taken at
   * once; throws where there is none. `releasePages` takes what of it is in memory out of this process: only for
   * arrays of `mapFloats`, whose values stay.
   */
  mapFloats(folder: string, count: number): Float32Array;
  releasePages(mapped: Float32Array): void;

  /** Gives the memory of a buffer back now, not when the collector finds it. The buffer and its views are empty from then on. */
  freeBuffer(buffer: ArrayBuffer): void;

  /**
   * Memory that processes share, an open file of which each has the same length, as member `rank` of `size`. Of the calls below each
   * member makes the same in the same order, one at a time; they are rejected (ERR_MEMBER_LOST) where one left or calls another. What is
   * passed in must not be touched before they are settled.
   */
  openSharedMemory(file: number, rank: number, size: number): NativeExchange;
  /** The same over MPI, whose library has that name, as the member that it says. Leaving waits for the others. */
  openMpi(library: string): { rank: number; size: number; exchange: NativeExchange };
  /** values becomes its sum over all members, in the order of their ranks, and travels as that type. */
  exchangeSum(exchange: NativeExchange, values: Float32Array, type: ReductionType): Promise<void>;
  /** all[size * own.length] */
  exchangeGather(exchange: NativeExchange, all: Uint8Array, own: Uint8Array): Promise<void>;
  exchangeLeave(exchange: NativeExchange): void;

  /** Gives pages that nothing is in back to the operating system. */
  trimHeap(): void;

  /**
   * Measured peak of the configured set: best GFLOP/s (for int8, GOP/s) of the products' inner loop over operands in the first-level cache, on all
   * configured threads, for about `milliseconds`.
   */
  measurePeak(precision: BasePrecision, milliseconds: number): number;
}

export interface NativeMatmulShape extends MatmulShape {
  /** Products one after another in memory. */
  batch: number;
}

/** A frozen base, with or without an adapter beside it. */
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
  /** [batch * time]: where in its sequence the document of each position begins; null: at 0. */
  documents: Int32Array | null;
}

/** Integers count modulo 2^32, but for the seed. */
export interface DropoutStream {
  share: number;
  seed: number;
  step: number;
  firstSequence: number;
  /** Its place among all layers. */
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

/** First moments in float32, or in eight bits with a scale for every 256 of them. */
export type NativeMoments =
  | { values: Float32Array[]; codes: null; scales: null }
  | { values: null; codes: (Int8Array | Uint8Array)[]; scales: Float32Array[] };

/** Matrices of one shape. */
export interface NativeMatrices {
  parameters: Float32Array[];
  /** Null for matrices that are not trained. */
  gradients: Float32Array[] | null;
  moments: NativeMoments | null;
}

/** Opaque handle of what members of a run reach each other by, made by `openSharedMemory` or `openMpi`. */
export interface NativeExchange {
  readonly exchange: unique symbol;
}

export interface NativeMuonOptions {
  learningRate: number;
  momentum: number;
  weightDecay: number;
  gradientScale: number;
  /** Of the products of the sign. */
  precision: ProductPrecision;
}

/** One layer of a half: its packed base, or null and its trained weight[in, out]; an adapter beside a base alone. */
export interface NativeLayer {
  base: PackedBase | null;
  /** Not read where there is a base. */
  weight: Float32Array | null;
  adapter: NativeAdapter | null;
  /** [out]; null for none. Queries, keys and values alone may have one. */
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
  /** [rows, in], of its input: 0, or what is kept is multiplied by; null drops nothing. In a half that is apart alone. */
  mask: Float32Array | null;
}

/**
 * Null for what is not wanted: of a trained weight, or of a frozen one without an adapter; of a and b; of the g that scale = tanh(g) was
 * made of, in a half that is apart alone.
 */
export interface NativeLayerGradients {
  weight: Float32Array | null;
  a: Float32Array | null;
  b: Float32Array | null;
  scale: Float32Array | null;
  bias: Float32Array | null;
}

/** Gradients of a half: of its input, its gain and its layers. */
export type NativeGradients<Layers extends string> = Record<'dx' | 'gain', Float32Array> &
  Record<Layers, NativeLayerGradients>;

interface NativeHalf {
  /** [hidden] */
  gain: Float32Array;
  epsilon: number;
  precision: ProductPrecision;
  /** What is kept for the backward pass is kept in bfloat16. */
  compact: boolean;
  /**
   * Each product is rounded by itself and then added: the sums of halves with dropout or a trained scale. Goes with neither `compact` nor
   * merged graphs.
   */
  apart: boolean;
}

export interface NativeMlpHalf extends NativeHalf, Record<'gate' | 'up' | 'down', NativeLayer> {
  shape: { rows: number; hidden: number; intermediate: number };
}

export interface NativeAttentionHalf extends NativeHalf, Record<'q' | 'k' | 'v' | 'o', NativeLayer> {
  shape: Record<'batch' | 'time' | 'hidden' | 'heads' | 'kvHeads' | 'headDim', number>;
  /** [>= time, headDim / 2]; both null: queries and keys are not turned. */
  cos: Float32Array | null;
  sin: Float32Array | null;
  headNorms: NativeHeadNorms | null;
  /** [batch * time]: where in its sequence the document of each position begins; null: at 0. */
  documents: Int32Array | null;
}

/** Gains of the norms of each head, or their gradients: [headDim]. */
export type NativeHeadNorms = Record<'q' | 'k', Float32Array>;

/**
 * Best first. `amx` needs its tiles for bfloat16 and int8, a Linux that saves them, and avx512bf16; `avx512bf16` also needs
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

/** Compute what `amx` and `neonBf16` do in plain arithmetic, on any machine: never offered or chosen, there to test those. */
export type ModelledInstructionSet = 'amx-model' | 'neonBf16-model';

/*
 * A base in int8 scales w symmetrically to [-127, 127], per output of y = x w and per input of dx = dy wᵀ, and x or dy per row on the
 * way; integer sums are exact. A row or a column of w that is not all finite makes the results it takes part in NaN. The adapter beside
 * it is computed in bfloat16. nf4 keeps w once, in four bits of NormalFloat with a scale for each 64 of them, and unpacks it to bfloat16
 * for each pass: an eighth of the memory, at some cost in time.
 */
export type { BasePrecision, ProductPrecision };

/** Opaque handle of panels packed by `packBase`. */
export interface PackedBase {
  readonly packedBase: unique symbol;
}

export interface NativeDescription {
  /** Sets this CPU and operating system support, best first. */
  instructionSets: InstructionSet[];
  /** What multiplies int8 under the best set: 'vnni' and 'i8mm' are features of their own, beside avx512 and bfloat16. */
  int8: 'amx' | 'vnni' | 'avx2' | 'i8mm' | 'dot' | 'neon' | 'portable';
  /** CPUs this process may use: affinity mask and cgroup quota, rounded up. */
  threadsMax: number;
  cpuModel: string;
}

/** Compiled here or of a package, as RELORA_NATIVE says. Throws NativeUnusable with what to do where it cannot be loaded. */
export function loadNativeAddon(): NativeAddon {
  return loadNativeFile(findNativeAddon()) as NativeAddon;
}
