import type { LayerGraph } from '../plan/adapterGraphs.js';
import type { DeviceSpeed } from '../plan/deviceSpeed.js';
import type { BaseKind } from '../plan/packedBytes.js';
import type { HeadPrecision } from '../plan/words.js';

/**
 * What a run computes on: its memory, its coarse-grained operations and its description. Held by the run and passed as an argument, never
 * through a global. The model calls it from top to bottom, forward and then backward; calls are not recorded.
 *
 * - Arrays are row-major; shapes are in brackets. `rows` is batch * time.
 * - Outputs come first and are overwritten, never read, unless a name says otherwise; outputs and inputs never overlap.
 * - Calls are queued in order and may return before they are done; reads (`download`, `readResult`, `mergeAdapter`) wait for what they need
 * without blocking the event loop. A CPU has finished each call when it returns.
 * - The caller may change host arrays that it passed in as soon as the call has returned.
 * - A wrong length, type or value throws at once, naming the call and the field, before memory is touched. A fault of the device itself
 * throws a DeviceFault (deviceFaults.ts) at this call or at the next read.
 * - The same calls with the same values give the same bits on the same device, whatever else the machine does.
 */
export interface Device
  extends DeviceMemory, BlockCalls, EndCalls, RepeatCalls, UpdateCalls, FrozenBaseCalls, ProbeCalls {
  readonly description: DeviceDescription;
  /** What sums over the devices of several members, if the device has a library for it; omitted where memory is the host's. */
  directSums?(): DirectSums | null;
  /** Kernel calls so far, by name: the conformance suite compares them with the kernels that each of its rows names. */
  kernelCounts(): ReadonlyMap<string, number>;
  /** Frees everything. Buffers of the device cannot be used afterwards. */
  close(): void;
}

/**
 * Sums over the devices of all members of a run, without their hosts. All members make the same calls. Throws MemberLost if another member
 * is gone, or if the devices cannot reach each other.
 */
export interface DirectSums {
  /** Name and version; only equal libraries understand each other. */
  readonly library: string;
  /** Made by one member, for the joins of all: `idBytes` bytes. */
  newId(): Promise<Uint8Array>;
  readonly idBytes: number;
  /** Resolves when all members have joined. */
  join(id: Uint8Array, rank: number, size: number): Promise<void>;
  /** Replaces a float32 buffer by its sum over all members; the order of additions is that of the library. */
  sum(buffer: DeviceBuffer): Promise<void>;
  /** This member makes no further calls; a pending one fails. */
  leave(): void;
}

/** A device's description in a job's record, checkpoints and `info`. Losses are comparable bit by bit only if all of it is equal. */
export interface DeviceDescription {
  name: 'native' | 'cuda' | 'tensorflow' | 'reference';
  /** Processor or card, as its vendor names it. */
  model: string;
  /** Of a card; omitted elsewhere. */
  uuid?: string;
  /** A card that a third-party library uses without describing it; omitted elsewhere. */
  isOnUnknownCard?: true;
  /** Instruction set of native products, or the architecture of a card (`sm_90a`); null elsewhere. */
  instructionSet: string | null;
  /** Of a CPU; 1 elsewhere. */
  threadCount: number;
  /** Precision of products, with `auto` resolved. */
  precision: ProductPrecision;
  /** Format in which frozen bases are stored and multiplied. */
  basePrecision: BasePrecision;
  /** What else determines the bits: driver, libraries, hash of the kernels, number of multiprocessors; by name, in a fixed order. */
  libraries: Readonly<Record<string, string>>;
}

/**
 * Precision inside products; their inputs and outputs are as the caller sees them. With 'bfloat16' operands are rounded (to nearest even)
 * and sums kept in float32.
 */
export type ProductPrecision = 'float32' | 'bfloat16';

/** Format of a frozen base; docs/performance.md describes int8 and nf4. */
export type BasePrecision = BaseKind;

// ---------------------------------------------------------------------------------------------------------------- memory

/**
 * 'activation' is a type of the device's choice (float32 or bfloat16) for values between the halves: it can be neither uploaded nor
 * downloaded, but can be converted.
 */
export type ElementType = 'float32' | 'int8' | 'uint8' | 'activation';

/** Memory of a device. Opaque: only the device that made it knows its location. */
export interface DeviceBuffer {
  /** Number of elements. */
  readonly length: number;
  readonly type: ElementType;
}

export interface DeviceMemory {
  /** Whether buffers are in the host's memory and each call is done when it returns: `changeOnHost` then passes the values themselves. */
  readonly isHost: boolean;
  /** Contents are arbitrary until written. Throws DeviceFault DEVICE_OUT_OF_MEMORY with figures. */
  alloc(length: number, type?: ElementType): DeviceBuffer;
  /**
   * Float32 buffers of these lengths one after another in one allocation, aligned as the device prefers, with zeros in between: `whole` can
   * be summed, scaled and exchanged in one call. `ends`: how many of its values end with each part. Released only through `whole`.
   */
  allocTogether(lengths: readonly number[]): { whole: DeviceBuffer; parts: DeviceBuffer[]; ends: number[] };
  zero(buffer: DeviceBuffer): void;
  upload(buffer: DeviceBuffer, values: HostValues): void;
  /**
   * Returns a copy that belongs to the caller, or overwrites and returns `into`, of the buffer's length and type, which serves to read many
   * buffers in turn. Not for an 'activation'.
   */
  download(buffer: DeviceBuffer, into?: HostValues): Promise<HostValues>;
  /** Lets the host change a float32 buffer in place: `values` is the buffer's content and valid until the promise is settled. */
  changeOnHost(buffer: DeviceBuffer, change: (values: Float32Array) => Promise<void>): Promise<void>;
  /** Copies the values of one length from float32 to an 'activation' or back, rounding to nearest even. */
  convert(to: DeviceBuffer, from: DeviceBuffer): void;
  /** Releases a buffer; null is ignored. Queued kernels may still read it. */
  release(buffer: DeviceBuffer | null): void;
  /** Frees the memory that is kept for reuse: call it when the shapes of later work change. */
  trim(): void;
  /**
   * Frees host values that are no longer needed, such as a download, now instead of at some later garbage collection. The array is empty
   * from then on.
   */
  discard(values: HostValues): void;
  /**
   * Reserves on a card the peak memory of a run, so that no step has to allocate; returns null if it succeeded, else how many bytes are
   * available. A host has nothing to reserve.
   */
  reserve(bytes: number): number | null;
  /** What buffers, packed bases and states use now, without memory kept for reuse. */
  memory(): { count: number; bytes: number };
}

export type HostValues = Float32Array | Int8Array | Uint8Array;

// ---------------------------------------------------------------------------------------------- the layers of a block

/** One linear layer: y = x W, or x W + scale (x A) B, plus the bias where there is one. */
export interface Layer {
  /** Name in the model's parameters, without `.weight`: names the dropout streams of version 1. */
  readonly name: string;
  /** Its index among all linear layers of the model, from 0: part of the counter in dropout of version 2. */
  readonly index: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** W[in, out], float32. With a `base`, the base was packed from it, and products do not read it. */
  readonly weight: DeviceBuffer;
  /** Null if the weight is trained. */
  readonly base: FrozenBase | null;
  readonly adapter: LayerAdapter | null;
  /** [out]; null: no bias. */
  readonly bias: DeviceBuffer | null;
}

/** Only with a frozen base. */
export interface LayerAdapter {
  readonly rank: number;
  /** [in, rank] */
  readonly a: DeviceBuffer;
  /** [rank, out] */
  readonly b: DeviceBuffer;
  /** A constant, or [1]: the trainable g of scale = tanh(g). */
  readonly scale: number | DeviceBuffer;
  /** 'merged' and 'weightGradient' need a base packed by `packMerged`, and support neither dropout nor a trainable scale. */
  readonly graph: LayerGraph;
  /** Applied to the adapter's input only; null: no dropout. */
  readonly dropout: Dropout | null;
}

/** Masks are a pure function of this and of the layer (dropout.ts). */
export interface Dropout {
  /** Fraction of the adapter's inputs that is dropped; the others are multiplied by 1 / (1 - share). */
  readonly share: number;
  readonly place: DropoutPlace;
}

/** Position of a micro-batch in a run, which determines its dropout masks. */
export interface DropoutPlace {
  /**
   * StreamVersions.dropout. 1: a stream named by (seed, step, micro-batch, layer's name), drawn in the order of the elements. 2: a counter
   * of (seed, step, global sequence, layer, element), which does not depend on how a step is cut into micro-batches.
   */
  readonly version: number;
  readonly seed: number;
  readonly step: number;
  /** Index of the micro-batch in its step. */
  readonly micro: number;
  /** Number of its first sequence in the run: sequence i of the micro-batch has number firstSequence + i. */
  readonly firstSequence: number;
}

/** Gradients that a backward pass computes; null for those that are not wanted. Float32, each of the shape of its parameter. */
export interface LayerGradients {
  /** Of a trained weight, or of a frozen one without an adapter that is being analyzed. */
  readonly weight: DeviceBuffer | null;
  readonly a: DeviceBuffer | null;
  readonly b: DeviceBuffer | null;
  /** [1], of g */
  readonly scale: DeviceBuffer | null;
  readonly bias: DeviceBuffer | null;
}

/**
 * The first half of a block: x + o(attention(rotary(q(n)), rotary(k(n)), v(n))) with n = rmsNorm(x, gain). Each head of q(n) and k(n) may
 * have a norm before its rotation.
 */
export interface AttentionHalf {
  readonly shape: AttentionShape;
  /** [hidden] */
  readonly gain: DeviceBuffer;
  readonly epsilon: number;
  readonly q: Layer;
  readonly k: Layer;
  readonly v: Layer;
  readonly o: Layer;
  /** Null: no head norms. */
  readonly headNorms: HeadNorms | null;
  /** Null: queries and keys are not rotated. */
  readonly angles: RotaryAngles | null;
  /** Null: each sequence is one document. Not supported with a cache. */
  readonly documents: Documents | null;
}

/**
 * Where documents begin in sequences, in the device's own form: a position attends to nothing before its document, and is counted from
 * there.
 */
export interface Documents {
  readonly rowCount: number;
}

/** Gains [headDim] of the norms of each head of queries and keys, or their gradients; epsilon is that of the half. */
export interface HeadNorms {
  readonly q: DeviceBuffer;
  readonly k: DeviceBuffer;
}

export interface AttentionShape {
  readonly batch: number;
  readonly time: number;
  readonly hidden: number;
  readonly heads: number;
  /** Divides heads; query head h uses key head floor(h * kvHeads / heads). */
  readonly kvHeads: number;
  /** Even, 8 to 128. */
  readonly headDim: number;
}

/** cos and sin [positions, headDim / 2]: entry i of a head is rotated with entry i + headDim / 2 (Hugging Face's half-split layout). */
export interface RotaryAngles {
  readonly positionCount: number;
  readonly cos: DeviceBuffer;
  readonly sin: DeviceBuffer;
}

/** The second half: x + down(silu(gate(n)) * up(n)) with n = rmsNorm(x, gain). */
export interface MlpHalf {
  readonly shape: MlpShape;
  /** [hidden] */
  readonly gain: DeviceBuffer;
  readonly epsilon: number;
  readonly gate: Layer;
  readonly up: Layer;
  readonly down: Layer;
}

export interface MlpShape {
  readonly batch: number;
  readonly time: number;
  readonly hidden: number;
  readonly intermediate: number;
}

/** How a forward pass is computed. */
export interface ForwardMode {
  /**
   * Whether to keep the state for a backward pass, so that it need not be recomputed. The state then takes over its input: x may only be
   * passed to that backward pass and released.
   */
  readonly keepsState: boolean;
  /**
   * 'run': the precision of the open device. 'float32': true float32 products from the float32 weights, adapters on their separate path
   * whatever the layer's graph; for probes, without a state.
   */
  readonly precision: 'run' | 'float32';
  /**
   * For generation, batch 1: the rows follow those that the cache holds for this block, attend to all of them, and are added to the cache.
   * Null: whole sequences from position 0.
   */
  readonly cache: { readonly keysAndValues: KeyValueCache; readonly block: number } | null;
}

/** State for the backward pass of a half: opaque, used like a stack (the last one made is used first). */
export interface HalfState {
  readonly halfState: symbol;
}

export interface AttentionGradients {
  /** [rows, hidden], an activation */
  readonly dx: DeviceBuffer;
  /** [hidden] */
  readonly gain: DeviceBuffer;
  /** Null if the half has none. */
  readonly headNorms: HeadNorms | null;
  readonly q: LayerGradients;
  readonly k: LayerGradients;
  readonly v: LayerGradients;
  readonly o: LayerGradients;
}

export interface MlpGradients {
  readonly dx: DeviceBuffer;
  readonly gain: DeviceBuffer;
  readonly gate: LayerGradients;
  readonly up: LayerGradients;
  readonly down: LayerGradients;
}

/** Keys and values of one sequence, for all blocks. Opaque. */
export interface KeyValueCache {
  /** Number of ids whose keys and values all blocks hold. */
  readonly length: number;
}

export interface BlockCalls {
  /** y[rows, hidden], an activation, = table[vocabulary, hidden] at ids[rows]. Throws on an id outside of the vocabulary. */
  embeddingForward(y: DeviceBuffer, table: DeviceBuffer, ids: Int32Array, shape: TableShape): void;
  /** dtable = the sum of dy[rows, hidden] at ids, rows in their order; `adds` adds to dtable's contents (for a head that is tied to it). */
  embeddingBackward(
    dtable: DeviceBuffer,
    dy: DeviceBuffer,
    ids: Int32Array,
    shape: TableShape,
    adds: boolean,
  ): void;

  /** y and x[rows, hidden]. Returns the state if the mode keeps one, else null. */
  attentionHalfForward(
    y: DeviceBuffer,
    x: DeviceBuffer,
    half: AttentionHalf,
    mode: ForwardMode,
  ): HalfState | null;
  /** Takes ownership of the state; without one it is recomputed from x. */
  attentionHalfBackward(
    gradients: AttentionGradients,
    dy: DeviceBuffer,
    x: DeviceBuffer,
    state: HalfState | null,
    half: AttentionHalf,
  ): void;

  mlpHalfForward(y: DeviceBuffer, x: DeviceBuffer, half: MlpHalf, mode: ForwardMode): HalfState | null;
  mlpHalfBackward(
    gradients: MlpGradients,
    dy: DeviceBuffer,
    x: DeviceBuffer,
    state: HalfState | null,
    half: MlpHalf,
  ): void;
  /** Releases a state that no backward pass will use. */
  releaseState(state: HalfState | null): void;

  newCache(
    shape: Pick<AttentionShape, 'kvHeads' | 'headDim'>,
    blockCount: number,
    positionsMax: number,
  ): KeyValueCache;
  /** Call it when all blocks have the rows of `idCount` ids. */
  advanceCache(cache: KeyValueCache, idCount: number): void;
  releaseCache(cache: KeyValueCache): void;

  /**
   * [rows]: where, within its sequence, the document of each position begins; 0 for the first document of a sequence. Throws on impossible
   * values.
   */
  newDocuments(begins: Int32Array, time: number): Documents;
  releaseDocuments(documents: Documents | null): void;
}

/** The inputs of a micro-batch, which change from step to step. */
export interface StepInputs {
  readonly inputs: Int32Array;
  /** The id that each position is to predict. */
  readonly targets: Int32Array;
  /** Where the document of each id begins; null: documents attend to each other. */
  readonly documents: Int32Array | null;
  /** Null: no dropout. */
  readonly dropout: DropoutPlace | null;
}

/** Everything, besides inputs and device memory, that determines which calls some work makes. Keys are compared element by element. */
export type RepeatKey = readonly (number | boolean | object | null)[];

export interface RepeatCalls {
  /**
   * Queues work that recurs with different inputs. A device may capture its calls and replay them, so the work may only call the device,
   * must release everything that it allocates, and must read no inputs other than those passed to it.
   */
  repeat(key: RepeatKey, inputs: StepInputs, work: (inputs: StepInputs) => void): void;
}

export interface TableShape {
  readonly rows: number;
  readonly vocabulary: number;
  readonly hidden: number;
}

// ------------------------------------------------------------------------------------------------ the end of a pass

/**
 * Results of a step, accumulated on the device and read once: the only thing that a step waits for. `loss`: over all calls of the head,
 * scale times the sum of their losses, each such term rounded to float32, summed in float64. `lossSum`: the plain sum of their losses in
 * nats, in float64. `squaredNorm`: the total that `sumSquares` added, in float64.
 */
export interface StepResult {
  readonly loss: number;
  readonly lossSum: number;
  readonly squaredNorm: number;
  /** Loss of each row in nats, 0 for a target of -1 and for rows not written; empty if none were requested. */
  readonly rowLosses: Float32Array;
}

export interface ResultBuffer {
  /** Number of rows whose losses are kept. */
  readonly rowCount: number;
}

export interface NormShape {
  readonly rows: number;
  readonly hidden: number;
  readonly epsilon: number;
}

/** The head and the loss of one micro-batch. */
export interface HeadPass {
  readonly shape: TableShape;
  /** [rows, hidden], an activation */
  readonly x: DeviceBuffer;
  /** [vocabulary, hidden] */
  readonly head: DeviceBuffer;
  /** [rows]; a target of -1 does not count. */
  readonly targets: Int32Array;
  /** Multiplies the sum of the losses, and with it every gradient. */
  readonly scale: number;
  /** Index of its first row among the `rowCount` rows of the result; rows beyond that are not kept. */
  readonly firstRow: number;
  /** Of the logits and of dx. */
  readonly precision: HeadPrecision;
}

export interface EndCalls {
  /** y[rows, hidden] = x / sqrt(mean(x²) + epsilon) * gain[hidden]. */
  rmsNormForward(
    y: DeviceBuffer,
    x: DeviceBuffer,
    gain: DeviceBuffer,
    shape: NormShape,
    mode: Pick<ForwardMode, 'keepsState'>,
  ): HalfState | null;
  rmsNormBackward(
    gradients: { readonly dx: DeviceBuffer; readonly gain: DeviceBuffer },
    dy: DeviceBuffer,
    x: DeviceBuffer,
    gain: DeviceBuffer,
    state: HalfState | null,
    shape: NormShape,
  ): void;

  newResult(rowCount: number): ResultBuffer;
  clearResult(result: ResultBuffer): void;
  /** Resolves when all earlier calls are done. */
  readResult(result: ResultBuffer): Promise<StepResult>;
  /** Replaces the accumulated losses; the squared norm stays. `rowLosses` has all rows of the result. */
  writeLosses(result: ResultBuffer, losses: Omit<StepResult, 'squaredNorm'>): void;
  releaseResult(result: ResultBuffer): void;

  /**
   * Adds to the result. Logits [rows, vocabulary] are never stored whole. Gradients are those of scale times the sum; null: only the loss.
   */
  headCrossEntropy(
    result: ResultBuffer,
    gradients: { readonly dx: DeviceBuffer; readonly head: DeviceBuffer } | null,
    pass: HeadPass,
  ): void;
  /** logits[rows - firstRow, vocabulary], float32, of the rows from `firstRow` on. 'float32' as in ForwardMode. */
  headLogits(
    logits: DeviceBuffer,
    pass: Pick<HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
    precision: ForwardMode['precision'],
  ): void;
}

// ------------------------------------------------------------------------------------------------------- the update

export interface UpdateCalls {
  /** accumulator += x, of the same length, float32. */
  addInPlace(accumulator: DeviceBuffer, x: DeviceBuffer): void;
  scaleInPlace(values: DeviceBuffer, factor: number): void;
  /** Adds the sum of squares of all buffers to the result, in float64, in an order that depends only on their lengths. */
  sumSquares(result: ResultBuffer, buffers: readonly DeviceBuffer[]): void;
  /** One update of parameters of the same shape, in place. */
  adamW(group: ParameterGroup, options: AdamWOptions): void;
  /** One update of matrices of the same shape along the sign of their momentum, in place. */
  muon(group: MatrixGroup, options: MuonOptions): void;
  /** One update of the factors of adapters of the same shape, in place; both are computed from the old values. */
  loraMuon(group: AdapterGroup, options: LoraMuonOptions): void;
  /** One update of matrices of the same shape along their gradients, scaled like Adam's update of their projections, in place. */
  apolloMini(group: ShadowGroup, options: AdamWOptions): void;
}

/** A matrix with its single moment; without a gradient and a moment it is only read. */
export interface MatrixMember {
  readonly parameter: DeviceBuffer;
  readonly gradient: DeviceBuffer | null;
  readonly first: Moment | null;
}

export interface MatrixShape {
  readonly rows: number;
  readonly columns: number;
}

export interface MatrixGroup {
  readonly shape: MatrixShape;
  readonly members: readonly MatrixMember[];
}

/**
 * Muon (docs/relora.md): m = momentum m + g, u = g + momentum m, with g clipped; w -= learningRate (weightDecay w + 0.2 sqrt(max(rows,
 * columns)) sign(u)). The sign is computed by five Newton-Schulz steps, with products in the run's precision.
 */
export interface MuonOptions {
  readonly learningRate: number;
  readonly momentum: number;
  readonly weightDecay: number;
  readonly clip: Clip;
}

/** Factors a[in, rank] and b[rank, out] of layers of the same shape; the rank is at most the smaller side. */
export interface AdapterGroup {
  readonly shape: { readonly inFeatures: number; readonly outFeatures: number; readonly rank: number };
  readonly members: readonly { readonly a: MatrixMember; readonly b: MatrixMember }[];
}

export interface LoraMuonOptions extends MuonOptions {
  /** s of y = x W + s (x A) B. */
  readonly scale: number;
}

/** Matrices with the direction that their gradients are projected on, and the moments of the projections. */
export interface ShadowGroup {
  readonly shape: MatrixShape;
  readonly members: readonly {
    readonly parameter: DeviceBuffer;
    readonly gradient: DeviceBuffer;
    /** [the smaller side] */
    readonly projection: DeviceBuffer;
    /** [the larger side] */
    readonly first: DeviceBuffer;
    readonly second: DeviceBuffer;
    /** [1]: norm of the last step, to limit its growth. */
    readonly norm: DeviceBuffer;
  }[];
}

/** Parameters of the same shape, with the inputs of each one's update. */
export interface ParameterGroup {
  readonly shape: readonly number[];
  readonly members: readonly {
    readonly parameter: DeviceBuffer;
    readonly gradient: DeviceBuffer;
    readonly first: Moment;
    readonly second: Moment;
  }[];
}

/** Float32 of the parameter's length, or 8 bits with a scale per 256 values (codes 'int8' for the first moment, 'uint8' for the second). */
export type Moment = DeviceBuffer | CodedMoment;

export interface CodedMoment {
  readonly codes: DeviceBuffer;
  /** Float32 [ceil(length / 256)] */
  readonly scales: DeviceBuffer;
}

/**
 * AdamW (Loshchilov and Hutter 2019, decoupled decay): g = gradient * clip; correction1 = 1 - beta1^t, correction2 = 1 - beta2^t;
 * p -= learningRate * (weightDecay * p + (m / correction1) / (sqrt(v / correction2) + epsilon)).
 */
export interface AdamWOptions {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
  readonly correction1: number;
  readonly correction2: number;
  readonly clip: Clip;
}

/**
 * Decided on the device, so that the host does not wait for the norm: if loss or squaredNorm is not finite the update changes nothing; else
 * clip = normMax / norm if the norm is larger than normMax, and 1 otherwise.
 */
export interface Clip {
  readonly result: ResultBuffer;
  readonly normMax: number;
}

// --------------------------------------------------------------------------------------------------- the frozen base

/** A frozen weight in the form that products read. Opaque. */
export interface FrozenBase {
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Device memory in addition to the float32 weight. */
  readonly bytes: number;
}

export interface FrozenBaseCalls {
  /** Packs w[in, out] for y = x w and dx = dy wᵀ. */
  packBase(weight: DeviceBuffer, inFeatures: number, outFeatures: number): FrozenBase;
  /** Packs another weight of the same size into the same memory. */
  repackBase(base: FrozenBase, weight: DeviceBuffer): void;
  /** Packs w + scale a b instead; w does not change. Throws for a base in int8, nf4 or fp8. */
  packMerged(base: FrozenBase, weight: DeviceBuffer, adapter: LayerAdapter): void;
  releaseBase(base: FrozenBase): void;
  /** Whether `packMerged` reads the float32 weight: then steps with merged graphs need it. */
  readonly packMergedReadsWeight: boolean;

  /**
   * From now on the weight is read only at merges, packings and probes: the device may move it to the host or, if a folder is given, to an
   * unnamed file in it. It remains the same buffer with the same values.
   */
  park(weight: DeviceBuffer, folder: string | null): void;

  /**
   * merged = weight + scale a b in float32, with the delta summed separately and added once. `into` null: only check the result. `into` may
   * be the weight itself. If the result is not finite, `into` must not be used, except that a weight passed as `into` is unchanged.
   */
  mergeAdapter(
    into: DeviceBuffer | null,
    weight: DeviceBuffer,
    adapter: LayerAdapter,
    shape: { readonly inFeatures: number; readonly outFeatures: number },
  ): Promise<{ finite: boolean; deltaNorm: number }>;
}

// --------------------------------------------------------------------------------------------------- probes and ranks

export interface ProbeCalls {
  /** y[rows, out] = output of a layer for x[rows, in], both float32 buffers, as ForwardMode 'float32'; without its bias and dropout. */
  layerForward(y: DeviceBuffer, x: DeviceBuffer, rows: number, layer: Layer): void;
  /** c[m, n] = op(a) op(b) in float32; op(a) is [m, k] and op(b) [k, n], a transposed operand is stored the other way round. */
  matmul(c: DeviceBuffer, a: DeviceBuffer, b: DeviceBuffer, shape: MatmulShape): void;
  /** Singular values of matrix[rows, columns], largest first, in float64; NaN if the matrix is not finite. May be computed on the host. */
  singularValues(matrix: Float32Array, rows: number, columns: number): Promise<Float64Array>;
  /** Measures the speed in under a second; 0 for what cannot be measured. */
  measure(): Promise<DeviceSpeed>;
}

export interface MatmulShape {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
}
