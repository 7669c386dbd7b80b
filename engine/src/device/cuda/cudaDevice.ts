import { unmeasured, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type * as api from '../device.js';
import { singularValues } from '../tfjs/singularValues.js';
import { AdamWCalls } from './adamW.js';
import { attentionParts } from './attentionHalf.js';
import type { BlasProducts } from './blasProducts.js';
import { CardCache } from './cardCache.js';
import { CardBases } from './cardBases.js';
import { Scope } from './cardMemory.js';
import { CardResult } from './cardResult.js';
import type { Card } from './cudaAddon.js';
import { embeddingBackward, embeddingForward } from './embedding.js';
import { headCrossEntropy, headLogits } from './head.js';
import type { Kernels } from './kernels.js';
import { linearForward } from './linear.js';
import { tight, typeOf } from './matrix.js';
import { halfBackward, halfForward, normGradients, type CardHalfState, type HalfParts } from './half.js';
import { measureCard } from './measureCard.js';
import { mlpParts } from './mlpHalf.js';
import { normBackward, normForward } from './norm.js';

type State = { half: CardHalfState } | { norm: { readonly scope: Scope; readonly rstd: number } };

const asState = (state: State): api.HalfState => state as unknown as api.HalfState;
const stateOf = (state: api.HalfState): State => state as unknown as State;

/** The device `cuda`: our kernels on an NVIDIA card. Every call is queued; only reads wait. */
export class CudaDevice extends CardBases implements api.Device {
  private readonly adamWCalls: AdamWCalls;

  constructor(
    description: api.DeviceDescription,
    card: Card,
    private readonly kernels: Kernels,
    /** Null: every product is by kernels of our own. */
    readonly blas: BlasProducts | null = null,
    isApart = false,
  ) {
    super(description, card, kernels, blas, isApart);
    this.adamWCalls = new AdamWCalls(this.calls, this);
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
