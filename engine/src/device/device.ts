import type { LayerGraph } from '../plan/adapterGraphs.js';
import type { DeviceSpeed } from '../plan/deviceSpeed.js';
import type { BaseKind } from '../plan/packedBytes.js';

/**
 * What a run computes on: its memory, its coarse calls and what it is. Held by the run and passed as an argument, never found
 * through a global. The model calls it from top to bottom, forward and then backward; nothing records what was called.
 *
 * - Arrays are row-major; shapes stand in brackets. `rows` is batch * time.
 * - Outputs come first and are overwritten, never read, unless a name says otherwise; outputs and inputs never overlap.
 * - Calls are queued in order and may return before they are done; what is read (`download`, `readResult`, `mergeAdapter`)
 *   waits for what it needs without blocking the event loop. A CPU has done each call when it returns.
 * - Host arrays that are passed in may be changed by the caller as soon as the call has returned.
 * - A wrong length, type or value throws at once, naming the call and the field, before memory is touched. A fault of the device
 *   itself throws a DeviceFault (deviceFaults.ts) at this call or at the next read.
 * - The same calls with the same values give the same bits on the same device, whatever else the machine does.
 */
export interface Device
  extends DeviceMemory, BlockCalls, EndCalls, RepeatCalls, UpdateCalls, FrozenBaseCalls, ProbeCalls {
  readonly description: DeviceDescription;
  /** Calls of kernels so far, by name: the conformance suite compares it with what each of its rows names. */
  kernelCounts(): ReadonlyMap<string, number>;
  /** Gives everything back. Buffers of the device are of no use afterwards. */
  close(): void;
}

/** What a job's record, checkpoints and `info` say of a device. Losses are comparable bit by bit only where all of it is equal. */
export interface DeviceDescription {
  name: 'native' | 'cuda' | 'tensorflow' | 'reference';
  /** The processor or the card, as its maker names it. */
  model: string;
  /** Of the card; left out elsewhere. */
  uuid?: string;
  /** On a card that a library of others uses and does not describe; left out elsewhere. */
  isOnUnknownCard?: true;
  /** Instructions of native products, or the architecture of a card (`sm_90a`); null elsewhere. */
  instructionSet: string | null;
  /** Of a CPU; 1 elsewhere. */
  threadCount: number;
  /** Arithmetic of products, with `auto` resolved. */
  precision: ProductPrecision;
  /** What frozen bases are kept in, and multiplied as. */
  basePrecision: BasePrecision;
  /** What else decides the bits: driver, libraries, hash of the kernels, count of multiprocessors; by name, in a fixed order. */
  libraries: Readonly<Record<string, string>>;
}

/**
 * Arithmetic of products; what they take and give is what a caller sees. With 'bfloat16' operands are rounded (to nearest even) and
 * sums kept in float32.
 */
export type ProductPrecision = 'float32' | 'bfloat16';

/** What a frozen base is kept in; docs/performance.md describes int8 and nf4. */
export type BasePrecision = BaseKind;

// ---------------------------------------------------------------------------------------------------------------- memory

/**
 * 'activation' is a type of the device's own choice (float32 or bfloat16) for what flows between the halves: it is neither uploaded nor
 * downloaded, but may be converted.
 */
export type ElementType = 'float32' | 'int8' | 'uint8' | 'activation';

/** Memory of a device. Opaque: only the device that made it knows where it lies. */
export interface DeviceBuffer {
  /** Elements. */
  readonly length: number;
  readonly type: ElementType;
}

export interface DeviceMemory {
  /** Contents are anything until written. Throws DeviceFault DEVICE_OUT_OF_MEMORY with figures. */
  alloc(length: number, type?: ElementType): DeviceBuffer;
  /**
   * Float32 buffers of these lengths one after another in one allocation, each aligned as the device likes it, with zeros between:
   * `whole` can be summed, scaled and exchanged in one call. Released through `whole` alone.
   */
  allocTogether(lengths: readonly number[]): { whole: DeviceBuffer; parts: DeviceBuffer[] };
  zero(buffer: DeviceBuffer): void;
  upload(buffer: DeviceBuffer, values: HostValues): void;
  /**
   * A copy that nobody else holds, or `into`, of the buffer's length and type, overwritten: for many buffers one after another. Not of an
   * 'activation'.
   */
  download(buffer: DeviceBuffer, into?: HostValues): Promise<HostValues>;
  /** Lets the host change a buffer of floats in place: what it is given is the buffer's until the promise is settled. */
  changeOnHost(buffer: DeviceBuffer, change: (values: Float32Array) => Promise<void>): Promise<void>;
  /** Copies the values of one length from float32 to an 'activation' or back, rounding to nearest even. */
  convert(to: DeviceBuffer, from: DeviceBuffer): void;
  /** Gives a buffer back; null is passed over. Kernels that are queued may still read it. */
  release(buffer: DeviceBuffer | null): void;
  /** Gives back what is kept to be used again: for a change of what steps compute. */
  trim(): void;
  /**
   * Values on the host, a download say, that nobody reads any more: their memory is given back now, where the collector would take
   * its time. The array is empty from then on.
   */
  discard(values: HostValues): void;
  /**
   * Takes from a card what all that a run holds will need at most, so that no step has to; null when it is had, else how many bytes
   * could be. A host has nothing to reserve.
   */
  reserve(bytes: number): number | null;
  /** What buffers, packed bases and states hold now, without what is kept to be used again. */
  memory(): { count: number; bytes: number };
}

export type HostValues = Float32Array | Int8Array | Uint8Array;

// ---------------------------------------------------------------------------------------------- the layers of a block

/** One linear layer: y = x W, or x W + scale (x A) B, plus the bias where there is one. */
export interface Layer {
  /** As in the model's parameters, without `.weight`: names the streams of dropout of version 1. */
  readonly name: string;
  /** Its place among all linear layers of the model, from 0: counts in dropout of version 2. */
  readonly index: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** W[in, out], float32. With a `base` it is the truth that the base was packed of, and products do not read it. */
  readonly weight: DeviceBuffer;
  /** Null where the weight is trained. */
  readonly base: FrozenBase | null;
  readonly adapter: LayerAdapter | null;
  /** [out]; null for none. */
  readonly bias: DeviceBuffer | null;
}

/** Exists only beside a frozen base. */
export interface LayerAdapter {
  readonly rank: number;
  /** [in, rank] */
  readonly a: DeviceBuffer;
  /** [rank, out] */
  readonly b: DeviceBuffer;
  /** A constant, or [1]: the trainable g of scale = tanh(g). */
  readonly scale: number | DeviceBuffer;
  /** 'merged' and 'weightGradient' need a base that `packMerged` packed, and go with neither dropout nor a trainable scale. */
  readonly graph: LayerGraph;
  /** On the adapter's input only; null drops nothing. */
  readonly dropout: Dropout | null;
}

/** Masks are a pure function of this and of the layer (dropout.ts). */
export interface Dropout {
  /** Of the adapter's inputs; what is kept is multiplied by 1 / (1 - share). */
  readonly share: number;
  readonly place: DropoutPlace;
}

/** Where the dropout of a micro-batch stands in a run. */
export interface DropoutPlace {
  /**
   * StreamVersions.dropout. 1: a stream by (seed, step, micro-batch, layer's name), drawn in the order of the elements.
   * 2: counted by (seed, step, global sequence, layer, element), the same however a step is cut into micro-batches.
   */
  readonly version: number;
  readonly seed: number;
  readonly step: number;
  /** Number of the micro-batch in its step. */
  readonly micro: number;
  /** Number of its first sequence in the run: sequence i of the micro-batch is firstSequence + i. */
  readonly firstSequence: number;
}

/** Gradients that a backward pass makes; null for what is not wanted. Float32, of the shapes of what they are of. */
export interface LayerGradients {
  /** Of a trained weight, or of a frozen one without an adapter that somebody looks at. */
  readonly weight: DeviceBuffer | null;
  readonly a: DeviceBuffer | null;
  readonly b: DeviceBuffer | null;
  /** [1], of g */
  readonly scale: DeviceBuffer | null;
  readonly bias: DeviceBuffer | null;
}

/**
 * The first half of a block: x + o(attention(rotary(q(n)), rotary(k(n)), v(n))) with n = rmsNorm(x, gain). Between a layer and its
 * rotation each head may have a norm of its own.
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
  /** Null for none. */
  readonly headNorms: HeadNorms | null;
  /** Null: queries and keys are not turned. */
  readonly angles: RotaryAngles | null;
  /** Null: all of a sequence is one document. With a cache there are none. */
  readonly documents: Documents | null;
}

/** Where documents begin in sequences, as the device holds it: a position sees nothing before its document, and is counted from there. */
export interface Documents {
  readonly rowCount: number;
}

/** Gains [headDim] of the norms of each head of queries and keys, or their gradients; their epsilon is the half's. */
export interface HeadNorms {
  readonly q: DeviceBuffer;
  readonly k: DeviceBuffer;
}

export interface AttentionShape {
  readonly batch: number;
  readonly time: number;
  readonly hidden: number;
  readonly heads: number;
  /** Divides heads; query head h reads key head floor(h * kvHeads / heads). */
  readonly kvHeads: number;
  /** Even, 8 to 128. */
  readonly headDim: number;
}

/** cos and sin [positions, headDim / 2]: entry i of a head turns with entry i + headDim / 2 (Hugging Face's half-split layout). */
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
   * Whether a backward pass will come that must not make the state again. The state takes its input over then: of x nothing may follow but
   * that backward pass and its release.
   */
  readonly keepsState: boolean;
  /**
   * 'run': as the device was opened. 'float32': true float32 products from the float32 weights, adapters by their separate path whatever
   * the layer's graph; for probes, without a state.
   */
  readonly precision: 'run' | 'float32';
  /**
   * For writing text, batch 1: the rows stand behind those that the cache holds for this block, attend to all of them, and are
   * added to it. Null: whole sequences from position 0.
   */
  readonly cache: { readonly keysAndValues: KeyValueCache; readonly block: number } | null;
}

/** What the backward pass of a half needs: opaque, a stack to the device (the last one made is the first one used). */
export interface HalfState {
  readonly halfState: symbol;
}

export interface AttentionGradients {
  /** [rows, hidden], an activation */
  readonly dx: DeviceBuffer;
  /** [hidden] */
  readonly gain: DeviceBuffer;
  /** Null where the half has none. */
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
  /** Ids whose keys and values all blocks hold. */
  readonly length: number;
}

export interface BlockCalls {
  /** y[rows, hidden], an activation, = table[vocabulary, hidden] at ids[rows]. Throws on an id outside of the vocabulary. */
  embeddingForward(y: DeviceBuffer, table: DeviceBuffer, ids: Int32Array, shape: TableShape): void;
  /** dtable = the sum of dy[rows, hidden] at ids, rows in their order; `adds` keeps what dtable held (a head that is tied to it). */
  embeddingBackward(
    dtable: DeviceBuffer,
    dy: DeviceBuffer,
    ids: Int32Array,
    shape: TableShape,
    adds: boolean,
  ): void;

  /** y and x[rows, hidden]. The state where the mode keeps one, else null. */
  attentionHalfForward(
    y: DeviceBuffer,
    x: DeviceBuffer,
    half: AttentionHalf,
    mode: ForwardMode,
  ): HalfState | null;
  /** Takes over the state; without one it is made again from x: recomputation. */
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
  /** Gives a state back that no backward pass will take. */
  releaseState(state: HalfState | null): void;

  newCache(
    shape: Pick<AttentionShape, 'kvHeads' | 'headDim'>,
    blockCount: number,
    positionsMax: number,
  ): KeyValueCache;
  /** The rows of `idCount` ids are in all blocks. */
  advanceCache(cache: KeyValueCache, idCount: number): void;
  releaseCache(cache: KeyValueCache): void;

  /** [rows]: where in its sequence the document of each position begins; what a sequence begins with is at 0. Throws on what cannot be so. */
  newDocuments(begins: Int32Array, time: number): Documents;
  releaseDocuments(documents: Documents | null): void;
}

/** What of a micro-batch changes from step to step. */
export interface StepInputs {
  readonly inputs: Int32Array;
  /** What each of them is to predict. */
  readonly targets: Int32Array;
  /** Where the document of each id begins; null: documents see each other. */
  readonly documents: Int32Array | null;
  /** Null drops nothing. */
  readonly dropout: DropoutPlace | null;
}

/** Everything, beside inputs and what lies on the device, that decides which calls some work makes. Keys are compared part by part. */
export type RepeatKey = readonly (number | boolean | object | null)[];

export interface RepeatCalls {
  /**
   * Queues work that comes again and again with other inputs. A device may capture its calls and run those instead, so the work may only call
   * the device, must give back all that it takes, and reads no inputs but those that it is given.
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
 * What a step comes to, accumulated on the device and read once: the only thing that a step waits for.
 * `loss`: over all calls of the head, scale times the sum of their losses, each such term rounded to float32, summed in float64.
 * `lossSum`: the plain sum of their losses in nats, in float64. `squaredNorm`: what `sumSquares` added, in float64.
 */
export interface StepResult {
  readonly loss: number;
  readonly lossSum: number;
  readonly squaredNorm: number;
  /** Loss of each row in nats, 0 for a target of -1 and where nothing was written; empty where none were asked for. */
  readonly rowLosses: Float32Array;
}

export interface ResultBuffer {
  /** Rows whose losses it keeps. */
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
  /** [rows]; -1 adds nothing. */
  readonly targets: Int32Array;
  /** Multiplies the sum of the losses, and so every gradient. */
  readonly scale: number;
  /** Where its rows stand among the `rowCount` of the result; what does not fit is not kept. */
  readonly firstRow: number;
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
  /** Resolves when all calls before it are done. */
  readResult(result: ResultBuffer): Promise<StepResult>;
  /** Puts losses in the place of those that were added; the squared norm stays. `rowLosses` has all rows of the result. */
  writeLosses(result: ResultBuffer, losses: Omit<StepResult, 'squaredNorm'>): void;
  releaseResult(result: ResultBuffer): void;

  /** Adds to the result. Logits [rows, vocabulary] are never held whole. Gradients: of scale times the sum; null for the loss alone. */
  headCrossEntropy(
    result: ResultBuffer,
    gradients: { readonly dx: DeviceBuffer; readonly head: DeviceBuffer } | null,
    pass: HeadPass,
  ): void;
  /**
   * logits[rows - firstRow, vocabulary], float32, of the rows from `firstRow` on. 'float32' as in ForwardMode.
   */
  headLogits(
    logits: DeviceBuffer,
    pass: Pick<HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
    precision: ForwardMode['precision'],
  ): void;
}

// ------------------------------------------------------------------------------------------------------- the update

export interface UpdateCalls {
  /** accumulator += x, of one length, float32. */
  addInPlace(accumulator: DeviceBuffer, x: DeviceBuffer): void;
  scaleInPlace(values: DeviceBuffer, factor: number): void;
  /** Adds the sum of squares of all buffers to the result, in float64, in an order that depends on their lengths alone. */
  sumSquares(result: ResultBuffer, buffers: readonly DeviceBuffer[]): void;
  /** One update of parameters of one shape, in place. */
  adamW(group: ParameterGroup, options: AdamWOptions): void;
  /** One update of matrices of one shape along the sign of their momentum, in place. */
  muon(group: MatrixGroup, options: MuonOptions): void;
  /** One update of the factors of adapters of one shape, both from what they were, in place. */
  loraMuon(group: AdapterGroup, options: LoraMuonOptions): void;
  /** One update of matrices of one shape along their gradients, as far as Adam goes along their shadows, in place. */
  apolloMini(group: ShadowGroup, options: AdamWOptions): void;
}

/** A matrix with its one moment; without a gradient and a moment it is only read. */
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
 * Muon (docs/relora.md): m = momentum m + g, u = g + momentum m, with g clipped;
 * w -= learningRate (weightDecay w + 0.2 sqrt(max(rows, columns)) sign(u)), the sign by five Newton-Schulz steps whose products are
 * those of the run's precision.
 */
export interface MuonOptions {
  readonly learningRate: number;
  readonly momentum: number;
  readonly weightDecay: number;
  readonly clip: Clip;
}

/** Factors a[in, rank] and b[rank, out] of layers of one shape; the rank is at most the smaller side. */
export interface AdapterGroup {
  readonly shape: { readonly inFeatures: number; readonly outFeatures: number; readonly rank: number };
  readonly members: readonly { readonly a: MatrixMember; readonly b: MatrixMember }[];
}

export interface LoraMuonOptions extends MuonOptions {
  /** s of y = x W + s (x A) B. */
  readonly scale: number;
}

/** Matrices with the direction that their gradients are seen along, and the moments of what is seen. */
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
    /** [1]: how long the last step was, for the limit of its growth. */
    readonly norm: DeviceBuffer;
  }[];
}

/** Parameters of one shape, with what an update of each needs. */
export interface ParameterGroup {
  readonly shape: readonly number[];
  readonly members: readonly {
    readonly parameter: DeviceBuffer;
    readonly gradient: DeviceBuffer;
    readonly first: Moment;
    readonly second: Moment;
  }[];
}

/** Float32 of the parameter's length, or eight bits with a scale for each 256 of them (codes 'int8' of the first, 'uint8' of the second). */
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
 * Decided on the device, so that nobody waits for the norm: where loss or squaredNorm is not finite the update changes nothing; else
 * clip = normMax / norm where the norm is larger than normMax, and 1 below it.
 */
export interface Clip {
  readonly result: ResultBuffer;
  readonly normMax: number;
}

// --------------------------------------------------------------------------------------------------- the frozen base

/** A frozen weight as products read it. Opaque. */
export interface FrozenBase {
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Memory that it takes on the device, beside the float32 weight. */
  readonly bytes: number;
}

export interface FrozenBaseCalls {
  /** Packs w[in, out] for y = x w and dx = dy wᵀ. */
  packBase(weight: DeviceBuffer, inFeatures: number, outFeatures: number): FrozenBase;
  /** Another weight of the same size, into the same memory. */
  repackBase(base: FrozenBase, weight: DeviceBuffer): void;
  /** Packs w + scale a b instead; w stays. Throws for a base in int8, nf4 or fp8. */
  packMerged(base: FrozenBase, weight: DeviceBuffer, adapter: LayerAdapter): void;
  releaseBase(base: FrozenBase): void;
  /** Whether `packMerged` starts from the float32 weight: then a step reads it where a graph is merged. */
  readonly packMergedReadsWeight: boolean;

  /**
   * The weight is read at merges, packings and probes alone from now on: the device may move it to the host or, where a folder is given,
   * to a nameless file in it. It stays the same buffer with the same values.
   */
  park(weight: DeviceBuffer, folder: string | null): void;

  /**
   * merged = weight + scale a b in float32, the delta summed apart and added once. `into` null: only looked at. `into` may be the
   * weight itself. Not finite: `into` must not be used, and the weight where it was `into` is as it was.
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
  /** y[rows, out] = what a layer makes of x[rows, in], both float32 buffers, as ForwardMode 'float32'; without its bias and dropout. */
  layerForward(y: DeviceBuffer, x: DeviceBuffer, rows: number, layer: Layer): void;
  /** c[m, n] = op(a) op(b) in float32; op(a) is [m, k] and op(b) [k, n], a transposed operand is stored the other way round. */
  matmul(c: DeviceBuffer, a: DeviceBuffer, b: DeviceBuffer, shape: MatmulShape): void;
  /** Singular values of matrix[rows, columns], largest first, in float64; NaN where it is not finite. May be computed on the host. */
  singularValues(matrix: Float32Array, rows: number, columns: number): Promise<Float64Array>;
  /** Measured speed, in under a second; 0 for what cannot be measured. */
  measure(): Promise<DeviceSpeed>;
}

export interface MatmulShape {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
}
