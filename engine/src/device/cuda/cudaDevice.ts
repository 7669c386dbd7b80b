import { unmeasured, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type * as api from '../device.js';
import { singularValues } from '../tfjs/singularValues.js';
import { attentionBackward, attentionForward, type AttentionState } from './attentionHalf.js';
import { CardCache } from './cardCache.js';
import { CardMemory, Scope } from './cardMemory.js';
import { CardResult } from './cardResult.js';
import type { Card } from './cudaAddon.js';
import { embeddingBackward, embeddingForward } from './embedding.js';
import { headCrossEntropy, headLogits } from './head.js';
import type { Kernels } from './kernels.js';
import { linearForward, type CardBase } from './linear.js';
import { MatrixCalls, newMatrix, tight, typeOf, type Arithmetic } from './matrix.js';
import { measureCard } from './measureCard.js';
import { mlpBackward, mlpForward, type MlpState } from './mlpHalf.js';
import { normBackward, normForward } from './norm.js';

type State =
  | { attention: AttentionState }
  | { mlp: MlpState }
  | { norm: { readonly scope: Scope; readonly rstd: number } };

const asState = (state: State): api.HalfState => state as unknown as api.HalfState;
const stateOf = (state: api.HalfState): State => state as unknown as State;

/** The device `cuda`: our kernels on an NVIDIA card. Every call is queued; only reads wait. */
export class CudaDevice extends CardMemory implements api.Device {
  private readonly calls: MatrixCalls;
  private readonly arithmetic: Arithmetic;

  constructor(
    readonly description: api.DeviceDescription,
    card: Card,
    private readonly kernels: Kernels,
  ) {
    super(card);
    this.calls = new MatrixCalls(this, kernels);
    this.arithmetic = description.precision;
  }

  kernelCounts(): ReadonlyMap<string, number> {
    return this.kernels.counts;
  }

  close(): void {
    this.card.close();
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
    const length = half.shape.batch * half.shape.time * half.shape.hidden;
    const [to, from] = [
      this.floats(y, length, 'attentionHalfForward: y'),
      this.floats(x, length, 'attentionHalfForward: x'),
    ];
    const attention = attentionForward(this.calls, to, from, half, mode, this.arithmetic);
    return this.kept({ attention }, attention.scope, mode);
  }

  attentionHalfBackward(
    gradients: api.AttentionGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    half: api.AttentionHalf,
  ): void {
    const length = half.shape.batch * half.shape.time * half.shape.hidden;
    const from = this.floats(x, length, 'attentionHalfBackward: x');
    const upstream = this.floats(dy, length, 'attentionHalfBackward: dy');
    const state = kept
      ? (stateOf(kept) as { attention: AttentionState }).attention
      : this.madeAgain(length, (to) =>
          attentionForward(this.calls, to, from, half, runMode, this.arithmetic),
        );
    attentionBackward(this.calls, gradients, upstream, from, half, state, this.arithmetic);
  }

  mlpHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.MlpHalf,
    mode: api.ForwardMode,
  ): api.HalfState | null {
    const length = half.shape.batch * half.shape.time * half.shape.hidden;
    const [to, from] = [
      this.floats(y, length, 'mlpHalfForward: y'),
      this.floats(x, length, 'mlpHalfForward: x'),
    ];
    const mlp = mlpForward(this.calls, to, from, half, mode, this.arithmetic);
    return this.kept({ mlp }, mlp.scope, mode);
  }

  mlpHalfBackward(
    gradients: api.MlpGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    half: api.MlpHalf,
  ): void {
    const length = half.shape.batch * half.shape.time * half.shape.hidden;
    const from = this.floats(x, length, 'mlpHalfBackward: x');
    const upstream = this.floats(dy, length, 'mlpHalfBackward: dy');
    const state = kept
      ? (stateOf(kept) as { mlp: MlpState }).mlp
      : this.madeAgain(length, (to) => mlpForward(this.calls, to, from, half, runMode, this.arithmetic));
    mlpBackward(this.calls, gradients, upstream, from, half, state, this.arithmetic);
  }

  releaseState(kept: api.HalfState | null): void {
    if (kept === null) return;
    const state = stateOf(kept);
    const { scope } = 'attention' in state ? state.attention : 'mlp' in state ? state.mlp : state.norm;
    scope.end();
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
    const into = {
      dx: this.floats(gradients.dx, rows * hidden, 'rmsNormBackward: dx'),
      gain: this.floats(gradients.gain, hidden, 'rmsNormBackward: dgain'),
    };
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
  }

  scaleInPlace(values: api.DeviceBuffer, factor: number): void {
    const { length } = values;
    this.elementwise('scale_in_place', length, {
      values: this.floats(values, length, 'scaleInPlace'),
      length,
      factor,
    });
  }

  sumSquares(result: api.ResultBuffer, buffers: readonly api.DeviceBuffer[]): void {
    for (const buffer of buffers)
      (result as CardResult).addSquares(
        this.calls,
        this.floats(buffer, buffer.length, 'sumSquares'),
        buffer.length,
      );
  }

  adamW({ members }: api.ParameterGroup, options: api.AdamWOptions): void {
    const common = {
      ...{ result: (options.clip.result as CardResult).address, norm_max: options.clip.normMax },
      ...{ learning_rate: options.learningRate, epsilon: options.epsilon, weight_decay: options.weightDecay },
      ...{ beta1: options.beta1, rest1: 1 - options.beta1, beta2: options.beta2, rest2: 1 - options.beta2 },
      ...{ inverse1: 1 / options.correction1, inverse2: 1 / options.correction2 },
    };
    for (const { parameter, gradient, first, second } of members) {
      const { length } = parameter;
      const scales = Math.ceil(length / 256);
      const isCoded = 'codes' in first;
      if (isCoded !== 'codes' in second)
        throw new TypeError('adamW: the moments of one group must all be float32 or all be coded');
      const moments: Record<string, number> =
        'codes' in first && 'codes' in second
          ? {
              first: this.codes(first.codes, length, 'int8', 'adamW: first'),
              first_scales: this.floats(first.scales, scales, 'adamW: first scales'),
              second: this.codes(second.codes, length, 'uint8', 'adamW: second'),
              second_scales: this.floats(second.scales, scales, 'adamW: second scales'),
            }
          : {
              first: this.floats(first as api.DeviceBuffer, length, 'adamW: first'),
              second: this.floats(second as api.DeviceBuffer, length, 'adamW: second'),
            };
      this.calls.launch({
        file: 'adamw',
        kernel: isCoded ? 'coded_adamw' : 'adamw',
        grid: [scales],
        parameters: {
          ...{ ...common, ...moments, length },
          parameter: this.floats(parameter, length, 'adamW: parameter'),
          gradient: this.floats(gradient, length, 'adamW: gradient'),
        },
      });
    }
  }

  packBase(weight: api.DeviceBuffer, inFeatures: number, outFeatures: number): api.FrozenBase {
    const { bytes } = this.memory();
    const scope = new Scope(this);
    const type = typeOf(this.arithmetic);
    const base: CardBase = {
      ...{ inFeatures, outFeatures, scope },
      matrix: type === 'float' ? null : newMatrix(scope, inFeatures, outFeatures, type),
      bytes: this.memory().bytes - bytes,
    };
    this.repackBase(base, weight);
    return base;
  }

  repackBase(base: api.FrozenBase, weight: api.DeviceBuffer): void {
    const { matrix, inFeatures, outFeatures, scope } = base as CardBase;
    const from = this.floats(weight, inFeatures * outFeatures, 'repackBase: weight');
    if (typeOf(this.arithmetic) !== 'float')
      return this.calls.copy(matrix!, tight(from, inFeatures, outFeatures));
    // Products read the weight itself, until an adapter is merged in.
    scope.end();
    (base as CardBase).matrix = null;
  }

  packMerged(base: api.FrozenBase, weight: api.DeviceBuffer, adapter: api.LayerAdapter): void {
    const { inFeatures, outFeatures, scope } = base as CardBase;
    const { rank, scale } = adapter;
    if (typeof scale !== 'number') throw new TypeError('packMerged: expected a constant scale');
    const type = typeOf(this.arithmetic);
    const temporary = new Scope(this);
    const matrixOf = (buffer: api.DeviceBuffer, rows: number, columns: number, field: string) =>
      tight(this.floats(buffer, rows * columns, `packMerged: ${field}`), rows, columns);
    const to = ((base as CardBase).matrix ??= newMatrix(scope, inFeatures, outFeatures, type));
    this.calls.product(
      to,
      this.calls.as(type, matrixOf(adapter.a, inFeatures, rank, 'a'), temporary),
      this.calls.as(type, matrixOf(adapter.b, rank, outFeatures, 'b'), temporary),
      { scale, addend: matrixOf(weight, inFeatures, outFeatures, 'weight') },
    );
    temporary.end();
  }

  releaseBase(base: api.FrozenBase): void {
    (base as CardBase).scope.end();
    (base as CardBase).matrix = null;
  }

  park(_weight: api.DeviceBuffer, _folder: string | null): void {
    // It stays on the card, from where merges and packings read it.
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
      w: this.floats(weight, length, 'mergeAdapter: weight'),
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
    if (into !== null && finite) merge(this.floats(into, length, 'mergeAdapter: into'));
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

  private kept(
    state: State,
    scope: Scope,
    { keepsState }: Pick<api.ForwardMode, 'keepsState'>,
  ): api.HalfState | null {
    if (keepsState) return asState(state);
    scope.end();
    return null;
  }

  /** The state of a half whose result is not wanted. */
  private madeAgain<T>(length: number, forward: (to: number) => T): T {
    const to = this.take(4 * length);
    const state = forward(to);
    this.give(to);
    return state;
  }
}

const runMode = { precision: 'run', cache: null } as const;
