import type { AttentionHalf, DeviceBuffer, Layer, LayerGradients, MlpHalf } from '../device.js';
import type { CpuMemory } from './cpuMemory.js';
import type { NativeAttentionHalf, NativeLayer, NativeLayerGradients, NativeMlpHalf } from './nativeAddon.js';

/** Halves of blocks and their layers as the kernels that compute them whole take them. */

export function nativeAttentionHalf(cpu: CpuMemory, half: AttentionHalf): NativeAttentionHalf {
  const { shape, angles, q, k, v, o } = half;
  return {
    shape,
    ...common(cpu, half),
    cos: cpu.floats(angles.cos),
    sin: cpu.floats(angles.sin),
    q: nativeLayer(cpu, q),
    k: nativeLayer(cpu, k),
    v: nativeLayer(cpu, v),
    o: nativeLayer(cpu, o),
  };
}

export function nativeMlpHalf(cpu: CpuMemory, half: MlpHalf): NativeMlpHalf {
  const { batch, time, hidden, intermediate } = half.shape;
  return {
    shape: { rows: batch * time, hidden, intermediate },
    ...common(cpu, half),
    gate: nativeLayer(cpu, half.gate),
    up: nativeLayer(cpu, half.up),
    down: nativeLayer(cpu, half.down),
  };
}

export function nativeGradients(
  cpu: CpuMemory,
  { weight, a, b, bias }: LayerGradients,
): NativeLayerGradients {
  const values = (buffer: DeviceBuffer | null) => buffer && cpu.floats(buffer);
  return { weight: values(weight), a: values(a), b: values(b), bias: values(bias) };
}

function common(cpu: CpuMemory, { gain, epsilon }: Pick<MlpHalf, 'gain' | 'epsilon'>) {
  return { gain: cpu.floats(gain), epsilon, precision: cpu.precision, compact: cpu.isCompact };
}

/** Its adapter has neither dropout nor a trained scale. */
function nativeLayer(cpu: CpuMemory, { weight, base, adapter, bias }: Layer): NativeLayer {
  return {
    base: base && cpu.panels(base),
    weight: base === null ? cpu.floats(weight) : null,
    adapter: adapter && {
      rank: adapter.rank,
      a: cpu.floats(adapter.a),
      b: cpu.floats(adapter.b),
      scale: adapter.scale as number,
      graph: adapter.graph,
    },
    bias: bias && cpu.floats(bias),
  };
}
