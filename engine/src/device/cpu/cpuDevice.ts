import { unmeasured, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type * as api from '../device.js';
import type { HostResult } from '../hostResult.js';
import {
  composedAttentionBackward,
  composedAttentionForward,
  composedMlpBackward,
  composedMlpForward,
  releaseComposed,
  type ComposedAttention,
  type ComposedMlp,
} from './composedHalves.js';
import { isPlain, linearForward, multiply, releaseLinearState } from './composedLinear.js';
import { CpuBases } from './cpuBases.js';
import { nativeAttentionHalf, nativeGradients, nativeMlpHalf } from './fusedHalves.js';
import { measureCpu } from './measureCpu.js';
import type { InstructionSet, NativeAddon } from './nativeAddon.js';

/** What a kernel or a composition of them left for the backward pass. */
type State = { fused: Float32Array } | { composed: ComposedAttention | ComposedMlp } | { rstd: Float32Array };

const asState = (state: State): api.HalfState => state as unknown as api.HalfState;
const stateOf = (state: api.HalfState): State => state as unknown as State;

/** The device `native`: our C++ on the processor. Each call is done when it returns. */
export class CpuDevice extends CpuBases implements api.Device {
  constructor(
    readonly description: api.DeviceDescription,
    addon: NativeAddon,
  ) {
    super(addon, description.precision, description.basePrecision);
  }

  kernelCounts(): ReadonlyMap<string, number> {
    return new Map(Object.entries(this.addon.callCounts()));
  }

  close(): void {
    this.trim();
  }

  override trim(): void {
    super.trim();
    // What kernels reuse grows to the largest call and goes with their context; packed bases do not belong to it.
    const { instructionSet, threadCount } = this.description;
    this.addon.configure({ instructionSet: instructionSet as InstructionSet, threads: threadCount });
    this.addon.trimHeap();
  }

  embeddingForward(
    y: api.DeviceBuffer,
    table: api.DeviceBuffer,
    ids: Int32Array,
    { rows, vocabulary, hidden }: api.TableShape,
  ): void {
    this.addon.embeddingForward(this.floats(y), this.floats(table), ids, rows, vocabulary, hidden);
  }

  embeddingBackward(
    dtable: api.DeviceBuffer,
    dy: api.DeviceBuffer,
    ids: Int32Array,
    { rows, vocabulary, hidden }: api.TableShape,
    adds: boolean,
  ): void {
    const target = adds ? this.take(vocabulary * hidden) : this.floats(dtable);
    this.addon.embeddingBackward(target, this.floats(dy), ids, rows, vocabulary, hidden);
    if (!adds) return;
    this.addon.addInPlace(this.floats(dtable), target);
    this.give(target);
  }

  attentionHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.AttentionHalf,
    mode: api.ForwardMode,
  ): api.HalfState | null {
    if (isFused([half.q, half.k, half.v, half.o], mode)) {
      const native = nativeAttentionHalf(this, half);
      const state = mode.keepsState ? this.take(this.addon.attentionHalfStateLength(native)) : null;
      this.addon.attentionHalfForward(native, this.floats(x), this.floats(y), state);
      return state && asState({ fused: state });
    }
    return this.kept(composedAttentionForward(this, y, x, half, mode), mode);
  }

  attentionHalfBackward(
    gradients: api.AttentionGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    half: api.AttentionHalf,
  ): void {
    if (!isFused([half.q, half.k, half.v, half.o], runMode)) {
      const composed = kept
        ? (stateOf(kept) as { composed: ComposedAttention }).composed
        : composedAttentionForward(this, null, x, half, runMode);
      return composedAttentionBackward(this, gradients, dy, x, half, composed);
    }
    const native = nativeAttentionHalf(this, half);
    const input = this.floats(x);
    const state = kept
      ? (stateOf(kept) as { fused: Float32Array }).fused
      : this.take(this.addon.attentionHalfStateLength(native));
    if (kept === null) this.addon.attentionHalfForward(native, input, null, state);
    this.addon.attentionHalfBackward(native, input, state, this.floats(dy), {
      dx: this.floats(gradients.dx),
      gain: this.floats(gradients.gain),
      q: nativeGradients(this, gradients.q),
      k: nativeGradients(this, gradients.k),
      v: nativeGradients(this, gradients.v),
      o: nativeGradients(this, gradients.o),
    });
    this.give(state);
  }

  mlpHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.MlpHalf,
    mode: api.ForwardMode,
  ): api.HalfState | null {
    if (isFused([half.gate, half.up, half.down], mode)) {
      const native = nativeMlpHalf(this, half);
      const state = mode.keepsState ? this.take(this.addon.mlpHalfStateLength(native)) : null;
      this.addon.mlpHalfForward(native, this.floats(x), this.floats(y), state);
      return state && asState({ fused: state });
    }
    return this.kept(composedMlpForward(this, y, x, half, mode), mode);
  }

  mlpHalfBackward(
    gradients: api.MlpGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    kept: api.HalfState | null,
    half: api.MlpHalf,
  ): void {
    if (!isFused([half.gate, half.up, half.down], runMode)) {
      const composed = kept
        ? (stateOf(kept) as { composed: ComposedMlp }).composed
        : composedMlpForward(this, null, x, half, runMode);
      return composedMlpBackward(this, gradients, dy, x, half, composed);
    }
    const native = nativeMlpHalf(this, half);
    const input = this.floats(x);
    const state = kept
      ? (stateOf(kept) as { fused: Float32Array }).fused
      : this.take(this.addon.mlpHalfStateLength(native));
    if (kept === null) this.addon.mlpHalfForward(native, input, null, state);
    this.addon.mlpHalfBackward(native, input, state, this.floats(dy), {
      dx: this.floats(gradients.dx),
      gain: this.floats(gradients.gain),
      gate: nativeGradients(this, gradients.gate),
      up: nativeGradients(this, gradients.up),
      down: nativeGradients(this, gradients.down),
    });
    this.give(state);
  }

  releaseState(kept: api.HalfState | null): void {
    if (kept === null) return;
    const state = stateOf(kept);
    if ('fused' in state) this.give(state.fused);
    else if ('rstd' in state) this.give(state.rstd);
    else releaseComposed(this, state.composed);
  }

  rmsNormForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    { rows, hidden, epsilon }: api.NormShape,
    { keepsState }: Pick<api.ForwardMode, 'keepsState'>,
  ): api.HalfState | null {
    const rstd = this.take(rows);
    this.addon.rmsNormForward(this.floats(y), rstd, this.floats(x), this.floats(gain), rows, hidden, epsilon);
    if (keepsState) return asState({ rstd });
    this.give(rstd);
    return null;
  }

  rmsNormBackward(
    { dx, gain: dgain }: { dx: api.DeviceBuffer; gain: api.DeviceBuffer },
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    kept: api.HalfState | null,
    shape: api.NormShape,
  ): void {
    let rstd: Float32Array;
    if (kept !== null) rstd = (stateOf(kept) as { rstd: Float32Array }).rstd;
    else {
      const y = this.alloc(x.length, 'activation');
      rstd = (
        stateOf(this.rmsNormForward(y, x, gain, shape, { keepsState: true })!) as { rstd: Float32Array }
      ).rstd;
      this.release(y);
    }
    this.addon.rmsNormBackward(
      this.floats(dx),
      this.floats(dgain),
      this.floats(dy),
      this.floats(x),
      this.floats(gain),
      rstd,
      shape.rows,
      shape.hidden,
    );
    this.give(rstd);
  }

  headCrossEntropy(
    result: api.ResultBuffer,
    gradients: { dx: api.DeviceBuffer; head: api.DeviceBuffer } | null,
    { shape, x, head, targets, scale, firstRow }: api.HeadPass,
  ): void {
    const losses = new Float32Array(shape.rows);
    this.addon.headCrossEntropy(
      losses,
      gradients && this.floats(gradients.dx),
      gradients && this.floats(gradients.head),
      this.floats(x),
      this.floats(head),
      targets,
      { ...shape, gradientScale: scale },
      this.precision,
    );
    let sum = 0;
    for (const loss of losses) sum += loss;
    (result as HostResult).addLosses({ losses, sum, scale, firstRow });
  }

  headLogits(
    logits: api.DeviceBuffer,
    { shape, x, head, firstRow }: Pick<api.HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
    precision: api.ForwardMode['precision'],
  ): void {
    const { rows, vocabulary, hidden } = shape;
    multiply(
      this,
      this.floats(logits),
      this.floats(x).subarray(firstRow * hidden),
      this.floats(head),
      [rows - firstRow, vocabulary, hidden],
      precision === 'float32' ? 'float32' : this.precision,
      { transposeB: true },
    );
  }

  layerForward(y: api.DeviceBuffer, x: api.DeviceBuffer, rows: number, layer: api.Layer): void {
    const adapter = layer.adapter && { ...layer.adapter, dropout: null };
    const plain = { ...layer, adapter, bias: null };
    const state = linearForward(this, this.floats(y), this.floats(x), rows, plain, {
      precision: 'float32',
      time: rows,
    });
    releaseLinearState(this, state);
  }

  matmul(c: api.DeviceBuffer, a: api.DeviceBuffer, b: api.DeviceBuffer, shape: api.MatmulShape): void {
    const { m, n, k } = shape;
    multiply(this, this.floats(c), this.floats(a), this.floats(b), [m, n, k], 'float32', shape);
  }

  singularValues(matrix: Float32Array, rows: number, columns: number): Promise<Float64Array> {
    return Promise.resolve(this.addon.singularValues(matrix, rows, columns));
  }

  measure(): Promise<DeviceSpeed> {
    return Promise.resolve({ ...unmeasured(this.description), ...measureCpu(this.addon) });
  }

  private kept(
    composed: ComposedAttention | ComposedMlp,
    { keepsState }: Pick<api.ForwardMode, 'keepsState'>,
  ): api.HalfState | null {
    if (keepsState) return asState({ composed });
    releaseComposed(this, composed);
    return null;
  }
}

const runMode: api.ForwardMode = { keepsState: true, precision: 'run', cache: null };

/** The one place where it is chosen which way a half is computed. */
function isFused(layers: readonly api.Layer[], { precision, cache }: api.ForwardMode): boolean {
  return (
    precision === 'run' &&
    cache === null &&
    layers.every(({ adapter }) => adapter === null || isPlain(adapter))
  );
}
