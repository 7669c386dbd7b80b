import { unmeasured, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type * as api from '../device.js';
import { CpuEnds } from './cpuEnds.js';
import { asState, stateOf, type State } from './cpuStates.js';
import {
  attentionLayers,
  drawMasks,
  giveMasks,
  mlpLayers,
  nativeAttentionHalf,
  nativeGradients,
  nativeHeadNorms,
  nativeMlpHalf,
  type Masks,
} from './fusedHalves.js';
import { attentionByLayers, mlpByLayers } from './halvesByLayers.js';
import { layerByItself, multiply } from './layerByItself.js';
import { measureCpu } from './measureCpu.js';
import type { InstructionSet, NativeAddon } from './nativeAddon.js';

/** The device `native`: our C++ on the processor. Each call is done when it returns. */
export class CpuDevice extends CpuEnds implements api.Device {
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
    // Kernel scratch memory grows to the largest call and is freed with its context; packed bases do not belong to it.
    const { instructionSet, threadCount } = this.description;
    this.addon.configure({ instructionSet: instructionSet as InstructionSet, threads: threadCount });
    this.addon.trimHeap();
  }

  attentionHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.AttentionHalf,
    mode: api.ForwardMode,
  ): api.HalfState | null {
    if (!isTraining(mode)) {
      attentionByLayers(this, y, x, half, mode);
      return null;
    }
    const masks = drawMasks(this, attentionLayers(half), half.shape);
    const native = nativeAttentionHalf(this, half, masks);
    const kept = mode.keepsState ? this.take(this.addon.attentionHalfStateLength(native)) : null;
    this.addon.attentionHalfForward(native, this.floats(x), this.floats(y), kept);
    return this.stateOrNull(kept, masks);
  }

  attentionHalfBackward(
    gradients: api.AttentionGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    state: api.HalfState | null,
    half: api.AttentionHalf,
  ): void {
    const before = state && (stateOf(state) as HalfOfRun);
    const masks = before?.masks ?? drawMasks(this, attentionLayers(half), half.shape);
    const native = nativeAttentionHalf(this, half, masks);
    const input = this.floats(x);
    const kept = before?.kept ?? this.take(this.addon.attentionHalfStateLength(native));
    if (before === null) this.addon.attentionHalfForward(native, input, null, kept);
    this.addon.attentionHalfBackward(native, input, kept, this.floats(dy), {
      dx: this.floats(gradients.dx),
      gain: this.floats(gradients.gain),
      headNorms: nativeHeadNorms(this, gradients.headNorms),
      q: nativeGradients(this, gradients.q),
      k: nativeGradients(this, gradients.k),
      v: nativeGradients(this, gradients.v),
      o: nativeGradients(this, gradients.o),
    });
    this.giveState({ kept, masks });
  }

  mlpHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.MlpHalf,
    mode: api.ForwardMode,
  ): api.HalfState | null {
    if (!isTraining(mode)) {
      mlpByLayers(this, y, x, half, mode);
      return null;
    }
    const masks = drawMasks(this, mlpLayers(half), half.shape);
    const native = nativeMlpHalf(this, half, masks);
    const kept = mode.keepsState ? this.take(this.addon.mlpHalfStateLength(native)) : null;
    this.addon.mlpHalfForward(native, this.floats(x), this.floats(y), kept);
    return this.stateOrNull(kept, masks);
  }

  mlpHalfBackward(
    gradients: api.MlpGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    state: api.HalfState | null,
    half: api.MlpHalf,
  ): void {
    const before = state && (stateOf(state) as HalfOfRun);
    const masks = before?.masks ?? drawMasks(this, mlpLayers(half), half.shape);
    const native = nativeMlpHalf(this, half, masks);
    const input = this.floats(x);
    const kept = before?.kept ?? this.take(this.addon.mlpHalfStateLength(native));
    if (before === null) this.addon.mlpHalfForward(native, input, null, kept);
    this.addon.mlpHalfBackward(native, input, kept, this.floats(dy), {
      dx: this.floats(gradients.dx),
      gain: this.floats(gradients.gain),
      gate: nativeGradients(this, gradients.gate),
      up: nativeGradients(this, gradients.up),
      down: nativeGradients(this, gradients.down),
    });
    this.giveState({ kept, masks });
  }

  releaseState(state: api.HalfState | null): void {
    if (state === null) return;
    const kept = stateOf(state);
    if ('rstd' in kept) this.give(kept.rstd);
    else this.giveState(kept);
  }

  layerForward(y: api.DeviceBuffer, x: api.DeviceBuffer, rows: number, layer: api.Layer): void {
    layerByItself(this, this.floats(y), this.floats(x), rows, { ...layer, bias: null }, 'float32');
  }

  matmul(c: api.DeviceBuffer, a: api.DeviceBuffer, b: api.DeviceBuffer, shape: api.MatmulShape): void {
    const { m, n, k } = shape;
    multiply(this, this.floats(c), this.floats(a), this.floats(b), [m, n, k], 'float32', shape);
  }

  singularValues(matrix: Float32Array, rows: number, columns: number): Promise<Float64Array> {
    return Promise.resolve(this.addon.singularValues(matrix, rows, columns));
  }

  measure(): Promise<DeviceSpeed> {
    return Promise.resolve({
      ...unmeasured(this.description),
      ...measureCpu(this.addon, this.description.threadCount),
    });
  }

  private stateOrNull(kept: Float32Array | null, masks: Masks): api.HalfState | null {
    if (kept !== null) return asState({ kept, masks });
    giveMasks(this, masks);
    return null;
  }

  private giveState({ kept, masks }: HalfOfRun): void {
    this.give(kept);
    giveMasks(this, masks);
  }
}

type HalfOfRun = Extract<State, { masks: Masks }>;

/** The only place that decides how a half is computed: as a fused kernel, except for float32 probes and generation. */
function isTraining({ precision, cache }: api.ForwardMode): boolean {
  return precision === 'run' && cache === null;
}
