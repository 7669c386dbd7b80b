import type { AttentionHalf, DeviceBuffer, HeadNorms, Layer, LayerGradients, MlpHalf } from '../device.js';
import { dropoutMask } from '../dropout.js';
import { beginsOf } from '../hostDocuments.js';
import type { CpuMemory } from './cpuMemory.js';
import type {
  NativeAttentionHalf,
  NativeHeadNorms,
  NativeLayer,
  NativeLayerGradients,
  NativeMlpHalf,
} from './nativeAddon.js';

/** Arguments of the kernels that compute a whole half of a block. */

/** Dropout masks, by the position of a layer in its half; null for a layer without dropout. */
export type Masks = readonly (Float32Array | null)[];

export const attentionLayers = ({ q, k, v, o }: AttentionHalf): Layer[] => [q, k, v, o];
export const mlpLayers = ({ gate, up, down }: MlpHalf): Layer[] => [gate, up, down];

/** The caller releases them. */
export function drawMasks(
  cpu: CpuMemory,
  layers: readonly Layer[],
  { batch, time }: Record<'batch' | 'time', number>,
): Masks {
  return layers.map((layer) => {
    const dropout = layer.adapter?.dropout ?? null;
    if (dropout === null) return null;
    const mask = cpu.take(batch * time * layer.inFeatures);
    const { share, place } = dropout;
    if (place.version === 1) dropoutMask(mask, dropout, layer, time);
    else {
      const { seed, step, firstSequence } = place;
      const sequenceLength = time * layer.inFeatures;
      cpu.addon.dropoutMask(mask, { share, seed, step, firstSequence, layer: layer.index, sequenceLength });
    }
    return mask;
  });
}

export function giveMasks(cpu: CpuMemory, masks: Masks): void {
  for (const mask of masks) if (mask !== null) cpu.give(mask);
}

export function nativeAttentionHalf(cpu: CpuMemory, half: AttentionHalf, masks: Masks): NativeAttentionHalf {
  const { shape, angles, documents, headNorms, q, k, v, o } = half;
  const common = commonFields(cpu, half, attentionLayers(half));
  return {
    shape,
    ...common,
    cos: angles && cpu.floats(angles.cos),
    sin: angles && cpu.floats(angles.sin),
    headNorms: nativeHeadNorms(cpu, headNorms),
    documents: beginsOf(documents),
    q: nativeLayer(cpu, q, masks[0]),
    k: nativeLayer(cpu, k, masks[1]),
    v: nativeLayer(cpu, v, masks[2]),
    o: nativeLayer(cpu, o, masks[3]),
  };
}

export function nativeMlpHalf(cpu: CpuMemory, half: MlpHalf, masks: Masks): NativeMlpHalf {
  const { batch, time, hidden, intermediate } = half.shape;
  return {
    shape: { rows: batch * time, hidden, intermediate },
    ...commonFields(cpu, half, mlpLayers(half)),
    gate: nativeLayer(cpu, half.gate, masks[0]),
    up: nativeLayer(cpu, half.up, masks[1]),
    down: nativeLayer(cpu, half.down, masks[2]),
  };
}

export function nativeHeadNorms(cpu: CpuMemory, norms: HeadNorms | null): NativeHeadNorms | null {
  return norms && { q: cpu.floats(norms.q), k: cpu.floats(norms.k) };
}

export function nativeGradients(
  cpu: CpuMemory,
  { weight, a, b, scale, bias }: LayerGradients,
): NativeLayerGradients {
  const values = (buffer: DeviceBuffer | null) => buffer && cpu.floats(buffer);
  return { weight: values(weight), a: values(a), b: values(b), scale: values(scale), bias: values(bias) };
}

/** The scale in float32, as products use it. */
export function scaleOf(cpu: CpuMemory, scale: number | DeviceBuffer): number {
  return Math.fround(typeof scale === 'number' ? scale : Math.tanh(cpu.floats(scale)[0]!));
}

/** With dropout or a trained scale products are summed separately (`apart`), and their state is kept in float32. */
function commonFields(
  cpu: CpuMemory,
  { gain, epsilon }: Pick<MlpHalf, 'gain' | 'epsilon'>,
  layers: readonly Layer[],
) {
  const apart = layers.some(
    ({ adapter }) => adapter !== null && (typeof adapter.scale !== 'number' || adapter.dropout !== null),
  );
  const { precision, isCompact } = cpu;
  return { gain: cpu.floats(gain), epsilon, precision, compact: isCompact && !apart, apart };
}

function nativeLayer(
  cpu: CpuMemory,
  { weight, base, adapter, bias }: Layer,
  mask: Float32Array | null | undefined,
): NativeLayer {
  return {
    base: base && cpu.panels(base),
    weight: base === null ? cpu.floats(weight) : null,
    adapter: adapter && {
      rank: adapter.rank,
      a: cpu.floats(adapter.a),
      b: cpu.floats(adapter.b),
      scale: scaleOf(cpu, adapter.scale),
      graph: adapter.graph,
      mask: mask ?? null,
    },
    bias: bias && cpu.floats(bias),
  };
}
