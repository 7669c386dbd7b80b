import { unmeasured, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type * as api from '../device.js';
import { singularValues } from '../tfjs/singularValues.js';
import { AdamWCalls } from './adamW.js';
import { attentionParts } from './attentionHalf.js';
import type { BlasProducts } from './blasProducts.js';
import { CardCache } from './cardCache.js';
import { CardMemory, Scope } from './cardMemory.js';
import { CardResult } from './cardResult.js';
import type { Card } from './cudaAddon.js';
import { embeddingBackward, embeddingForward } from './embedding.js';
import { headCrossEntropy, headLogits } from './head.js';
import type { Kernels } from './kernels.js';
import { linearForward, type CardBase } from './linear.js';
import { MatrixCalls } from './matrixCalls.js';
import { newMatrix, tight, typeOf, type Arithmetic } from './matrix.js';
import { halfBackward, halfForward, normGradients, type CardHalfState, type HalfParts } from './half.js';
import { measureCard } from './measureCard.js';
import { mlpParts } from './mlpHalf.js';
import { normBackward, normForward } from './norm.js';

type State = { half: CardHalfState } | { norm: { readonly scope: Scope; readonly rstd: number } };

const asState = (state: State): api.HalfState => state as unknown as api.HalfState;
const stateOf = (state: api.HalfState): State => state as unknown as State;

/** The device `cuda`: our kernels on an NVIDIA card. Every call is queued; only reads wait. */
export class CudaDevice extends CardMemory implements api.Device {
  private readonly calls: MatrixCalls;
  private readonly adamWCalls: AdamWCalls;
  private readonly arithmetic: Arithmetic;

  constructor(
    readonly description: api.DeviceDescription,
    card: Card,
    private readonly kernels: Kernels,
    /** Null: every product is by kernels of our own. */
    readonly blas: BlasProducts | null = null,
    isApart = false,
  ) {
    super(card, isApart);
    this.calls = new MatrixCalls(this, kernels, blas);
    this.adamWCalls = new AdamWCalls(this.calls, this);
    this.arithmetic = description.precision;
  }

  kernelCounts(): ReadonlyMap<string, number> {
    return this.kernels.counts;
  }

  close(): void {
    this.card.close();
  }

  override reserve(bytes: number): number | null {
    const lacking = super.reserve(bytes);
    if (lacking === null) this.adamWCalls.prepare();
    return lacking;
  }

  embeddingForward(
    y: api.DeviceBuffer,
    table: api.DeviceBuffer,
    ids: Int32Array,
    shape: api.TableShape,
  ): void {
    const { rows, vocabulary, hidden } = shape;
    const from = this.floats(table, vocabulary * hidden, 'embeddingForward: table');
    embeddingForward(this.calls, this.floats(y, rows * hidden, 'embeddingForward: y'), from, ids, shape);
  }

  embeddingBackward(
    dtable: api.DeviceBuffer,
    dy: api.DeviceBuffer,
    ids: Int32Array,
    shape: api.TableShape,
    adds: boolean,
  ): void {
    const { rows, vocabulary, hidden } = shape;
    const to = this.floats(dtable, vocabulary * hidden, 'embeddingBackward: dtable');
    const from = this.floats(dy, rows * hidden, 'embeddingBackward: dy');
    if (!adds) this.zero(dtable);
    embeddingBackward(this.calls, to, from, ids, shape);
  }

  attentionHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.AttentionHalf,
    mode: api.ForwardMode,
  ): api.HalfState | null {
    return this.halfForward(y, x, attentionParts(this.calls, half, mode.cache), mode, 'attentionHalfForward');
  }

  attentionHalfBackward(
    { dx, gain, q, k, v, o }: api.AttentionGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    half: api.AttentionHalf,
  ): void {
    const gradients = { dx, gain, first: [q, k, v], last: o };
    this.halfBackward(gradients, dy, x, kept, attentionParts(this.calls, half), 'attentionHalfBackward');
  }

  mlpHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.MlpHalf,
    mode: api.ForwardMode,
  ): api.HalfState | null {
    return this.halfForward(y, x, mlpParts(this.calls, half), mode, 'mlpHalfForward');
  }

  mlpHalfBackward(
    { dx, gain, gate, up, down }: api.MlpGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    half: api.MlpHalf,
  ): void {
    const gradients = { dx, gain, first: [gate, up], last: down };
    this.halfBackward(gradients, dy, x, kept, mlpParts(this.calls, half), 'mlpHalfBackward');
  }

  releaseState(kept: api.HalfState | null): void {
    if (kept === null) return;
    const state = stateOf(kept);
    ('half' in state ? state.half : state.norm).scope.end();
  }

  newCache(
    { kvHeads, headDim }: Pick<api.AttentionShape, 'kvHeads' | 'headDim'>,
    blockCount: number,
    positionsMax: number,
  ): api.KeyValueCache {
    return new CardCache(this, blockCount, positionsMax, kvHeads * headDim);
  }

  advanceCache(cache: api.KeyValueCache, idCount: number): void {
    (cache as CardCache).length += idCount;
  }

  releaseCache(cache: api.KeyValueCache): void {
    (cache as CardCache).release();
  }

  rmsNormForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    shape: api.NormShape,
    mode: Pick<api.ForwardMode, 'keepsState'>,
  ): api.HalfState | null {
    const { rows, hidden, epsilon } = shape;
    const to = tight(this.floats(y, rows * hidden, 'rmsNormForward: y'), rows, hidden);
    const from = this.floats(x, rows * hidden, 'rmsNormForward: x');
    const scope = new Scope(this);
    const rstd = scope.take(4 * rows);
    const norm = { rows, hidden, epsilon, gain: this.floats(gain, hidden, 'rmsNormForward: gain') };
    normForward(this.calls, to, rstd, from, norm);
    return this.kept({ norm: { scope, rstd } }, scope, mode);
  }

  rmsNormBackward(
    gradients: { readonly dx: api.DeviceBuffer; readonly gain: api.DeviceBuffer },
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    kept: api.HalfState | null,
    { rows, hidden, epsilon }: api.NormShape,
  ): void {
    const norm = { rows, hidden, epsilon, gain: this.floats(gain, hidden, 'rmsNormBackward: gain') };
    const from = this.floats(x, rows * hidden, 'rmsNormBackward: x');
    const withCodes = this.description.basePrecision === 'fp8';
    const into = normGradients(this.calls, gradients, norm, typeOf(this.arithmetic), withCodes);
    const upstream = tight(this.floats(dy, rows * hidden, 'rmsNormBackward: dy'), rows, hidden);
    let state = kept && (stateOf(kept) as { norm: { scope: Scope; rstd: number } }).norm;
    if (state === null) {
      const scope = new Scope(this);
      state = { scope, rstd: scope.take(4 * rows) };
      normForward(this.calls, tight(scope.take(4 * rows * hidden), rows, hidden), state.rstd, from, norm);
    }
    const temporary = new Scope(this);
    normBackward(this.calls, into, upstream, from, state.rstd, null, norm, temporary);
    temporary.end();
    state.scope.end();
  }

  newResult(rowCount: number): api.ResultBuffer {
    return new CardResult(this, rowCount);
  }

  clearResult(result: api.ResultBuffer): void {
    (result as CardResult).clear();
  }

  readResult(result: api.ResultBuffer): Promise<api.StepResult> {
    return (result as CardResult).read();
  }

  releaseResult(result: api.ResultBuffer): void {
    (result as CardResult).release();
  }

  headCrossEntropy(
    result: api.ResultBuffer,
    gradients: { readonly dx: api.DeviceBuffer; readonly head: api.DeviceBuffer } | null,
    pass: api.HeadPass,
  ): void {
    const { rows, vocabulary, hidden } = pass.shape;
    const into = gradients && {
      dx: this.floats(gradients.dx, rows * hidden, 'headCrossEntropy: dx'),
      head: this.floats(gradients.head, vocabulary * hidden, 'headCrossEntropy: dhead'),
    };
    headCrossEntropy(this.calls, result as CardResult, into, pass, this.arithmetic);
  }

  headLogits(
    logits: api.DeviceBuffer,
    pass: Pick<api.HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
    precision: api.ForwardMode['precision'],
  ): void {
    const { rows, vocabulary } = pass.shape;
    const to = this.floats(logits, (rows - pass.firstRow) * vocabulary, 'headLogits: logits');
    headLogits(this.calls, to, pass, precision === 'float32' ? 'float32' : this.arithmetic);
  }

  addInPlace(accumulator: api.DeviceBuffer, x: api.DeviceBuffer): void {
    const { length } = accumulator;
    const [to, from] = [
      this.floats(accumulator, length, 'addInPlace'),
      this.floats(x, length, 'addInPlace: x'),
    ];
    this.elementwise('add_in_place', length, { accumulator: to, x: from, length });
    this.written(accumulator);
  }

  scaleInPlace(values: api.DeviceBuffer, factor: number): void {
    const { length } = values;
    this.elementwise('scale_in_place', length, {
      values: this.floats(values, length, 'scaleInPlace'),
      length,
      factor,
    });
    this.written(values);
  }

  sumSquares(result: api.ResultBuffer, buffers: readonly api.DeviceBuffer[]): void {
    for (const { address, length } of this.spansOf(buffers, 'sumSquares'))
      (result as CardResult).addSquares(this.calls, address, length);
  }

  adamW(group: api.ParameterGroup, options: api.AdamWOptions): void {
    this.adamWCalls.update(group, options);
  }

  // Refused where a job is created; whoever comes here all the same gets this error.
  muon(): never {
    throw new Error('The device cuda has no kernels of Muon yet');
  }

  loraMuon(): never {
    throw new Error('The device cuda has no kernels of LoRA-Muon yet');
  }

  apolloMini(): never {
    throw new Error('The device cuda has no kernels of APOLLO-Mini yet');
  }

  packBase(weight: api.DeviceBuffer, inFeatures: number, outFeatures: number): api.FrozenBase {
    const { bytes } = this.memory();
    const scope = new Scope(this);
    const type = typeOf(this.arithmetic);
    const isE4m3 = this.description.basePrecision === 'fp8';
    const matrix = type === 'float' || isE4m3 ? null : newMatrix(scope, inFeatures, outFeatures, type);
    const own = { isE4m3, holder: null, version: 0, matrix, release: () => scope.end() };
    // Codes for both directions take what bfloat16 takes.
    const taken = isE4m3 ? 2 * inFeatures * outFeatures : this.memory().bytes - bytes;
    const base: CardBase = { inFeatures, outFeatures, bytes: taken, ...own };
    this.repackBase(base, weight);
    return base;
  }

  repackBase(base: api.FrozenBase, weight: api.DeviceBuffer): void {
    const { matrix, inFeatures, outFeatures, isE4m3 } = base as CardBase;
    (base as CardBase).version++;
    if (isE4m3) return; // when it is used
    if (typeOf(this.arithmetic) === 'float') {
      // Products read the weight itself, until an adapter is merged in.
      (base as CardBase).release();
      (base as CardBase).matrix = null;
      return;
    }
    const scope = new Scope(this);
    const from = this.stagedFloats(weight, inFeatures * outFeatures, 'repackBase: weight', scope);
    this.calls.copy(matrix!, tight(from, inFeatures, outFeatures));
    scope.end();
  }

  /** In bfloat16 W + s A B is made by each pass for itself. */
  packMerged(base: api.FrozenBase, weight: api.DeviceBuffer, adapter: api.LayerAdapter): void {
    const { inFeatures, outFeatures } = base;
    const { rank, scale } = adapter;
    if (typeof scale !== 'number') throw new TypeError('packMerged: expected a constant scale');
    if ((base as CardBase).isE4m3) throw new TypeError('packMerged: a base in e4m3 takes no adapter');
    if (typeOf(this.arithmetic) !== 'float') return;
    const temporary = new Scope(this);
    const matrixOf = (buffer: api.DeviceBuffer, rows: number, columns: number, field: string) =>
      tight(this.stagedFloats(buffer, rows * columns, `packMerged: ${field}`, temporary), rows, columns);
    if ((base as CardBase).matrix === null) {
      const scope = new Scope(this);
      const matrix = newMatrix(scope, inFeatures, outFeatures, 'float');
      Object.assign(base, { matrix, release: () => scope.end() });
    }
    this.calls.product(
      (base as CardBase).matrix!,
      matrixOf(adapter.a, inFeatures, rank, 'a'),
      matrixOf(adapter.b, rank, outFeatures, 'b'),
      { scale, addend: matrixOf(weight, inFeatures, outFeatures, 'weight') },
    );
    temporary.end();
  }

  releaseBase(base: api.FrozenBase): void {
    (base as CardBase).release();
    (base as CardBase).matrix = null;
  }

  get packMergedReadsWeight(): boolean {
    return typeOf(this.arithmetic) === 'float';
  }

  /** In float32 products read it at every step. */
  override park(weight: api.DeviceBuffer): void {
    if (typeOf(this.arithmetic) !== 'float') super.park(weight);
  }

  async mergeAdapter(
    into: api.DeviceBuffer | null,
    weight: api.DeviceBuffer,
    { a, b, rank, scale }: api.LayerAdapter,
    { inFeatures, outFeatures }: { readonly inFeatures: number; readonly outFeatures: number },
  ): Promise<{ finite: boolean; deltaNorm: number }> {
    const length = inFeatures * outFeatures;
    const factor =
      typeof scale === 'number' ? scale : Math.tanh(((await this.download(scale)) as Float32Array)[0]!);
    const grid = [Math.ceil(outFeatures / 64), Math.ceil(inFeatures / 64)] as const;
    const blocks = grid[0] * grid[1];
    const scope = new Scope(this);
    const found = scope.take(12 * blocks);
    const parameters = {
      w: this.stagedFloats(weight, length, 'mergeAdapter: weight', scope),
      a: this.floats(a, inFeatures * rank, 'mergeAdapter: a'),
      b: this.floats(b, rank * outFeatures, 'mergeAdapter: b'),
      ...{
        squares: found,
        infinite: found + 8 * blocks,
        in: inFeatures,
        rank,
        out: outFeatures,
        scale: factor,
      },
    };
    const merge = (merged: number) =>
      this.calls.launch({
        ...{ file: 'product_float', kernel: 'merge_adapter', grid },
        parameters: { ...parameters, merged },
      });
    // Looked at first: what is not finite must leave the weight as it is.
    merge(0);
    const bytes = new Uint8Array(12 * blocks);
    await this.card.downloadLater(bytes, found);
    const squares = new Float64Array(bytes.buffer, 0, blocks).reduce((sum, part) => sum + part, 0);
    const finite =
      Number.isFinite(squares) && new Int32Array(bytes.buffer, 8 * blocks).every((count) => count === 0);
    if (into !== null && finite) {
      const to = into === weight ? parameters.w : this.floats(into, length, 'mergeAdapter: into');
      merge(to);
      this.keepStaged(into, to);
    }
    scope.end();
    return { finite, deltaNorm: Math.sqrt(squares) };
  }

  layerForward(y: api.DeviceBuffer, x: api.DeviceBuffer, rows: number, layer: api.Layer): void {
    const { inFeatures, outFeatures, adapter } = layer;
    const scope = new Scope(this);
    linearForward(
      this.calls,
      tight(this.floats(y, rows * outFeatures, 'layerForward: y'), rows, outFeatures),
      tight(this.floats(x, rows * inFeatures, 'layerForward: x'), rows, inFeatures),
      { ...layer, bias: null, adapter: adapter && { ...adapter, dropout: null } },
      null,
      { arithmetic: 'float32', isProbe: true, time: rows },
      scope,
      scope,
    );
    scope.end();
  }

  matmul(c: api.DeviceBuffer, a: api.DeviceBuffer, b: api.DeviceBuffer, shape: api.MatmulShape): void {
    const { m, n, k, transposeA, transposeB } = shape;
    const matrixOf = (buffer: api.DeviceBuffer, rows: number, columns: number, field: string) =>
      tight(this.floats(buffer, rows * columns, `matmul: ${field}`), rows, columns);
    this.calls.product(
      matrixOf(c, m, n, 'c'),
      transposeA ? matrixOf(a, k, m, 'a') : matrixOf(a, m, k, 'a'),
      transposeB ? matrixOf(b, n, k, 'b') : matrixOf(b, k, n, 'b'),
      { transposeA, transposeB },
    );
  }

  singularValues(matrix: Float32Array, rows: number, columns: number): Promise<Float64Array> {
    return Promise.resolve(singularValues(matrix, rows, columns));
  }

  async measure(): Promise<DeviceSpeed> {
    const rates = await measureCard(this.calls);
    this.trim();
    return { ...unmeasured(this.description), ...rates };
  }

  private elementwise(kernel: string, length: number, parameters: Readonly<Record<string, number>>): void {
    this.calls.launch({ file: 'elementwise', kernel, grid: [Math.ceil(length / 256)], parameters }, 'float');
  }

  private halfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    parts: HalfParts,
    mode: api.ForwardMode,
    call: string,
  ): api.HalfState | null {
    const length = parts.rows * parts.hidden;
    const [to, from] = [this.floats(y, length, `${call}: y`), this.floats(x, length, `${call}: x`)];
    const half = halfForward(this.calls, to, from, parts, mode, this.arithmetic);
    return this.kept({ half }, half.scope, mode);
  }

  private halfBackward(
    gradients: Parameters<typeof halfBackward>[1],
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    parts: HalfParts,
    call: string,
  ): void {
    const length = parts.rows * parts.hidden;
    const from = this.floats(x, length, `${call}: x`);
    let half = kept && (stateOf(kept) as { half: CardHalfState }).half;
    if (half === null) {
      // Made again, without what comes out of it.
      const to = this.take(4 * length);
      half = halfForward(this.calls, to, from, parts, { precision: 'run' }, this.arithmetic);
      this.give(to);
    }
    halfBackward(this.calls, gradients, dy, from, parts, half, this.arithmetic);
  }

  private kept(
    state: State,
    scope: Scope,
    { keepsState }: Pick<api.ForwardMode, 'keepsState'>,
  ): api.HalfState | null {
    if (keepsState) return asState(state);
    scope.end();
    return null;
  }
}
