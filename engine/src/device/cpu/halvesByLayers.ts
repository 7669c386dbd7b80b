import type { AttentionHalf, DeviceBuffer, ForwardMode, Layer, MlpHalf } from '../device.js';
import type { HostCache } from '../hostCache.js';
import { documentAngles } from '../documentAngles.js';
import { beginsOf } from '../hostDocuments.js';
import type { CpuMemory } from './cpuMemory.js';
import { layerByItself } from './layerByItself.js';

/** Forward passes of the halves of a block, kernel by kernel: for float32 probes, and for generation with a cache. Neither uses dropout. */

type Mode = Pick<ForwardMode, 'precision' | 'cache'>;

export function attentionByLayers(
  cpu: CpuMemory,
  y: DeviceBuffer,
  x: DeviceBuffer,
  half: AttentionHalf,
  { precision, cache }: Mode,
): void {
  const { batch, time, heads, kvHeads, headDim } = half.shape;
  const rows = batch * time;
  const input = cpu.floats(x);
  const firstPosition = cache?.keysAndValues.length ?? 0;
  const normed = norm(cpu, input, half.gain, [rows, half.shape.hidden], half.epsilon);
  const through = (layer: Layer, from: Float32Array): Float32Array => {
    const to = cpu.take(rows * layer.outFeatures);
    layerByItself(cpu, to, from, rows, layer, precision);
    return to;
  };
  const turned = (of: 'q' | 'k', count: number): Float32Array => {
    const made = through(half[of], normed);
    if (half.headNorms === null) return turn(cpu, made, half, count, firstPosition);
    // Each head separately: one row per head.
    const byHead = norm(cpu, made, half.headNorms[of], [rows * count, headDim], half.epsilon);
    cpu.give(made);
    return turn(cpu, byHead, half, count, firstPosition);
  };
  const [q, k, v] = [turned('q', heads), turned('k', kvHeads), through(half.v, normed)];
  const mixed = cpu.take(rows * heads * headDim);
  const held = cache?.keysAndValues as HostCache | undefined;
  held?.append(cache!.block, k, v, kvHeads * headDim);
  if (held !== undefined && firstPosition > 0) held.attend(cache!.block, q, half.shape, mixed);
  else {
    const logSumExp = cpu.take(batch * heads * time);
    const documents = beginsOf(half.documents);
    const shape = { batch, time, heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim), documents };
    const arithmetic = precision === 'float32' ? 'float32' : cpu.precision;
    cpu.addon.attentionForward(mixed, logSumExp, { q, k, v }, shape, arithmetic);
    cpu.give(logSumExp);
  }
  const out = through(half.o, mixed);
  residual(cpu, cpu.floats(y), input, out);
  for (const array of [normed, q, k, v, mixed, out]) cpu.give(array);
}

export function mlpByLayers(
  cpu: CpuMemory,
  y: DeviceBuffer,
  x: DeviceBuffer,
  half: MlpHalf,
  { precision }: Mode,
): void {
  const { batch, time, hidden } = half.shape;
  const rows = batch * time;
  const input = cpu.floats(x);
  const normed = norm(cpu, input, half.gain, [rows, hidden], half.epsilon);
  const through = (layer: Layer, from: Float32Array): Float32Array => {
    const to = cpu.take(rows * layer.outFeatures);
    layerByItself(cpu, to, from, rows, layer, precision);
    return to;
  };
  const [gate, up] = [through(half.gate, normed), through(half.up, normed)];
  const inner = cpu.take(gate.length);
  cpu.addon.swigluForward(inner, gate, up);
  const out = through(half.down, inner);
  residual(cpu, cpu.floats(y), input, out);
  for (const array of [normed, gate, up, inner, out]) cpu.give(array);
}

function norm(
  cpu: CpuMemory,
  x: Float32Array,
  gain: DeviceBuffer,
  [rows, dim]: readonly [number, number],
  epsilon: number,
): Float32Array {
  const [normed, rstd] = [cpu.take(x.length), cpu.take(rows)];
  cpu.addon.rmsNormForward(normed, rstd, x, cpu.floats(gain), rows, dim, epsilon);
  cpu.give(rstd);
  return normed;
}

function residual(cpu: CpuMemory, sum: Float32Array, x: Float32Array, y: Float32Array): void {
  sum.set(x);
  cpu.addon.addInPlace(sum, y);
}

/** Takes ownership of the rotated values. */
function turn(
  cpu: CpuMemory,
  from: Float32Array,
  { shape: { batch, time, headDim }, angles, documents }: AttentionHalf,
  heads: number,
  firstPosition: number,
): Float32Array {
  if (angles === null) return from;
  const to = cpu.take(from.length);
  const table = { cos: cpu.floats(angles.cos), sin: cpu.floats(angles.sin) };
  const begins = beginsOf(documents);
  if (begins === null)
    cpu.addon.rotary(to, from, table, { batch, time, heads, headDim, firstPosition }, false);
  else {
    // As one sequence, with separate angles for each of its rows.
    const rows = documentAngles(table, begins, time, headDim / 2);
    const shape = { batch: 1, time: batch * time, heads, headDim, firstPosition: 0 };
    cpu.addon.rotary(to, from, rows, shape, false);
  }
  cpu.give(from);
  return to;
}
