import type {
  AttentionGradients,
  AttentionHalf,
  DeviceBuffer,
  Layer,
  LayerGradients,
  MlpGradients,
  MlpHalf,
} from '../device.js';
import type { CpuMemory } from './cpuMemory.js';
import type { HalfBiases, HalfLayer, HalfLayerWithGradients } from './nativeAddon.js';

/** Halves of blocks as one kernel each. The state between the passes is an opaque array of floats. */

const none = new Float32Array(0);
const noBiases: HalfBiases = [none, none, none];

export function fusedAttentionForward(
  cpu: CpuMemory,
  y: DeviceBuffer | null,
  state: Float32Array | null,
  x: DeviceBuffer,
  half: AttentionHalf,
): void {
  cpu.addon.attentionHalfForward(
    y === null ? null : cpu.floats(y),
    state,
    cpu.floats(x),
    ...attentionSizes(cpu, half),
    ...layerArguments(cpu, half.q),
    ...layerArguments(cpu, half.k),
    ...layerArguments(cpu, half.v),
    ...layerArguments(cpu, half.o),
    ...biasesOf(cpu, half),
    half.epsilon,
    cpu.precision,
    cpu.isCompact,
  );
}

export function fusedAttentionBackward(
  cpu: CpuMemory,
  gradients: AttentionGradients,
  dy: DeviceBuffer,
  state: Float32Array,
  x: DeviceBuffer,
  half: AttentionHalf,
): void {
  const { q, k, v, o } = half;
  // The kernel always makes the gradients of biases that there are.
  const unwanted: Float32Array[] = [];
  const biasGradient = (layer: Layer, { bias }: LayerGradients): Float32Array => {
    if (layer.bias === null) return none;
    if (bias !== null) return cpu.floats(bias);
    unwanted.push(cpu.take(layer.outFeatures));
    return unwanted.at(-1)!;
  };
  cpu.addon.attentionHalfBackward(
    cpu.floats(gradients.dx),
    cpu.floats(gradients.gain),
    cpu.floats(dy),
    state,
    cpu.floats(x),
    ...attentionSizes(cpu, half),
    ...layerWithGradients(cpu, q, gradients.q),
    ...layerWithGradients(cpu, k, gradients.k),
    ...layerWithGradients(cpu, v, gradients.v),
    ...layerWithGradients(cpu, o, gradients.o),
    biasGradient(q, gradients.q),
    biasGradient(k, gradients.k),
    biasGradient(v, gradients.v),
    ...biasesOf(cpu, half),
    half.epsilon,
    cpu.precision,
    cpu.isCompact,
  );
  for (const array of unwanted) cpu.give(array);
}

export function attentionStateLength(cpu: CpuMemory, { shape, q, k, v, o }: AttentionHalf): number {
  const { batch, time, heads, kvHeads, headDim } = shape;
  return cpu.addon.attentionHalfStateLength(
    batch,
    time,
    heads,
    kvHeads,
    headDim,
    pathRank(q),
    pathRank(k),
    pathRank(v),
    pathRank(o),
    cpu.isCompact,
  );
}

export function fusedMlpForward(
  cpu: CpuMemory,
  y: DeviceBuffer | null,
  state: Float32Array | null,
  x: DeviceBuffer,
  half: MlpHalf,
): void {
  cpu.addon.mlpHalfForward(
    y === null ? null : cpu.floats(y),
    state,
    cpu.floats(x),
    ...mlpSizes(cpu, half),
    ...layerArguments(cpu, half.gate),
    ...layerArguments(cpu, half.up),
    ...layerArguments(cpu, half.down),
    half.epsilon,
    cpu.precision,
    cpu.isCompact,
  );
}

export function fusedMlpBackward(
  cpu: CpuMemory,
  gradients: MlpGradients,
  dy: DeviceBuffer,
  state: Float32Array,
  x: DeviceBuffer,
  half: MlpHalf,
): void {
  cpu.addon.mlpHalfBackward(
    cpu.floats(gradients.dx),
    cpu.floats(gradients.gain),
    cpu.floats(dy),
    state,
    cpu.floats(x),
    ...mlpSizes(cpu, half),
    ...layerWithGradients(cpu, half.gate, gradients.gate),
    ...layerWithGradients(cpu, half.up, gradients.up),
    ...layerWithGradients(cpu, half.down, gradients.down),
    half.epsilon,
    cpu.precision,
    cpu.isCompact,
  );
}

export function mlpStateLength(cpu: CpuMemory, { shape, gate, up, down }: MlpHalf): number {
  const { batch, time, intermediate } = shape;
  const ranks = [pathRank(gate), pathRank(up), pathRank(down)] as const;
  return cpu.addon.mlpHalfStateLength(batch * time, intermediate, ...ranks, cpu.isCompact);
}

/** gain, rows, hidden, cos, sin, batch, time, heads, kvHeads, headDim, scale */
function attentionSizes(cpu: CpuMemory, { gain, shape, angles }: AttentionHalf) {
  const { batch, time, hidden, heads, kvHeads, headDim } = shape;
  return [
    cpu.floats(gain),
    batch * time,
    hidden,
    cpu.floats(angles.cos),
    cpu.floats(angles.sin),
    batch,
    time,
    heads,
    kvHeads,
    headDim,
    1 / Math.sqrt(headDim),
  ] as const;
}

/** gain, rows, hidden, intermediate */
function mlpSizes(cpu: CpuMemory, { gain, shape }: MlpHalf) {
  const { batch, time, hidden, intermediate } = shape;
  return [cpu.floats(gain), batch * time, hidden, intermediate] as const;
}

function biasesOf(cpu: CpuMemory, { q, k, v }: AttentionHalf): HalfBiases {
  if (q.bias === null || k.bias === null || v.bias === null) return noBiases;
  return [cpu.floats(q.bias), cpu.floats(k.bias), cpu.floats(v.bias)];
}

function layerArguments(cpu: CpuMemory, { weight, base, adapter }: Layer): HalfLayer {
  if (base === null) return [null, cpu.floats(weight), none, none, 1, 0, 'separate'];
  const panels = cpu.panels(base);
  if (adapter === null) return [panels, none, none, none, 1, 0, 'separate'];
  const { a, b, scale, rank, graph } = adapter;
  return [panels, none, cpu.floats(a), cpu.floats(b), scale as number, rank, graph];
}

function layerWithGradients(
  cpu: CpuMemory,
  layer: Layer,
  { weight, a, b }: LayerGradients,
): HalfLayerWithGradients {
  const values = (buffer: DeviceBuffer | null) => (buffer === null ? none : cpu.floats(buffer));
  return [values(weight), values(a), values(b), ...layerArguments(cpu, layer)];
}

/** Rank of the path that is computed beside the base; 0 where there is none. */
function pathRank({ base, adapter }: Layer): number {
  return base === null || adapter === null || adapter.graph !== 'separate' ? 0 : adapter.rank;
}
