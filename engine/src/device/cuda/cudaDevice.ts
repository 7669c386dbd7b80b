import { unmeasured, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type * as api from '../device.js';
import { singularValues } from '../tfjs/singularValues.js';
import { attentionParts } from './attentionHalf.js';
import type { BlasProducts } from './blasProducts.js';
import { CardCache } from './cardCache.js';
import { CardDocuments } from './cardDocuments.js';
import { CardEnds } from './cardEnds.js';
import type { CardMemory } from './cardMemory.js';
import { keptState, stateOf } from './cardStates.js';
import type { Card } from './cudaAddon.js';
import { halfBackward, halfForward, type CardHalfState, type HalfParts } from './half.js';
import type { Kernels } from './kernels.js';
import { linearForward } from './linear.js';
import { tight } from './matrix.js';
import { measureCard } from './measureCard.js';
import { mlpParts } from './mlpHalf.js';
import { Repeats } from './repeats.js';
import { Scope } from './scope.js';

/** The device `cuda`: our kernels on an NVIDIA card. Every call is queued; only reads wait. */
export class CudaDevice extends CardEnds implements api.Device {
  private readonly repeats: Repeats;

  constructor(
    description: api.DeviceDescription,
    card: Card,
    kernels: Kernels,
    /** Null: all products use our own kernels. */
    readonly blas: BlasProducts | null = null,
    isApart = false,
    private readonly openRing: (memory: CardMemory) => api.DirectSums | null = () => null,
  ) {
    super(description, card, kernels, blas, isApart);
    this.repeats = new Repeats(this, kernels);
  }

  repeat(key: api.RepeatKey, inputs: api.StepInputs, work: (inputs: api.StepInputs) => void): void {
    this.repeats.run(key, inputs, work);
  }

  override release(buffer: api.DeviceBuffer | null): void {
    if (buffer !== null && buffer.type === 'float32') this.repeats.forgetWith(buffer);
    super.release(buffer);
  }

  /** Drops captured graphs, so that work is queued again: for measurements of the cost. */
  forgetRepeats(): void {
    this.repeats.forgetAll();
  }

  directSums(): api.DirectSums | null {
    return this.openRing(this);
  }

  kernelCounts(): ReadonlyMap<string, number> {
    return this.kernels.counts;
  }

  close(): void {
    this.card.close();
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
    { dx, gain, headNorms, q, k, v, o }: api.AttentionGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    half: api.AttentionHalf,
  ): void {
    const gradients = { dx, gain, first: [q, k, v], last: o };
    const parts = attentionParts(this.calls, half, null, headNorms);
    this.halfBackward(gradients, dy, x, kept, parts, 'attentionHalfBackward');
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
    stateOf(kept)?.scope.end();
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

  newDocuments(begins: Int32Array, time: number): api.Documents {
    return new CardDocuments(this, begins, time);
  }

  releaseDocuments(documents: api.Documents | null): void {
    (documents as CardDocuments | null)?.release();
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

  private halfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    parts: HalfParts,
    mode: api.ForwardMode,
    call: string,
  ): api.HalfState | null {
    const length = parts.rows * parts.hidden;
    const [to, from] = [this.floats(y, length, `${call}: y`), this.floats(x, length, `${call}: x`)];
    const state = halfForward(this.calls, to, from, parts, mode, this.arithmetic);
    if (state.x?.type === 'bf16') this.takeOver(x);
    return keptState(state, mode);
  }

  private halfBackward(
    gradients: Parameters<typeof halfBackward>[1],
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    parts: HalfParts,
    call: string,
  ): void {
    let state = stateOf<CardHalfState>(kept);
    if (state === null) {
      // Recomputed, without its output.
      const length = parts.rows * parts.hidden;
      const [from, to] = [this.floats(x, length, `${call}: x`), this.take(4 * length)];
      state = halfForward(
        this.calls,
        to,
        from,
        parts,
        { precision: 'run', keepsState: true },
        this.arithmetic,
      );
      this.give(to);
    }
    halfBackward(this.calls, gradients, dy, parts, state, this.arithmetic);
  }
}
