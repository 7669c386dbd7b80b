import type {
  AttentionGradients,
  AttentionHalf,
  DeviceBuffer,
  ForwardMode,
  Layer,
  LayerGradients,
  MlpGradients,
  MlpHalf,
} from '../device.js';
import { linearBackward, linearForward, releaseLinearState, type LinearState } from './composedLinear.js';
import type { HostCache } from '../hostCache.js';
import type { CpuMemory } from './cpuMemory.js';
import type { NativeAttentionShape } from './nativeAddon.js';

/** The halves of a block, kernel by kernel: for what the fused ones do not know. All that is kept is float32. */

export interface ComposedAttention {
  normed: Float32Array;
  rstd: Float32Array;
  /** Turned by their positions. */
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  mixed: Float32Array;
  logSumExp: Float32Array;
  linear: Record<'q' | 'k' | 'v' | 'o', LinearState>;
}

export interface ComposedMlp {
  normed: Float32Array;
  rstd: Float32Array;
  gate: Float32Array;
  up: Float32Array;
  inner: Float32Array;
  linear: Record<'gate' | 'up' | 'down', LinearState>;
}

export function composedAttentionForward(
  cpu: CpuMemory,
  y: DeviceBuffer | null,
  x: DeviceBuffer,
  half: AttentionHalf,
  { precision, cache }: Pick<ForwardMode, 'precision' | 'cache'>,
): ComposedAttention {
  const { batch, time, heads, kvHeads, headDim } = half.shape;
  const rows = batch * time;
  const input = cpu.floats(x);
  const [width, keyWidth] = [heads * headDim, kvHeads * headDim];
  const firstPosition = cache?.keysAndValues.length ?? 0;
  const { normed, rstd } = norm(cpu, input, half, rows);
  const through = (layer: Layer, from: Float32Array) => {
    const to = cpu.take(rows * layer.outFeatures);
    return { to, state: linearForward(cpu, to, from, rows, layer, { precision, time }) };
  };
  const turned = (layer: Layer, count: number) => {
    const { to, state } = through(layer, normed);
    const values = cpu.take(to.length);
    turn(cpu, values, to, half, count, firstPosition, false);
    cpu.give(to);
    return { values, state };
  };
  const q = turned(half.q, heads);
  const k = turned(half.k, kvHeads);
  const v = through(half.v, normed);
  let mixed = cpu.take(rows * width);
  const logSumExp = cpu.take(batch * heads * time);
  const keysAndValues = cache?.keysAndValues as HostCache | undefined;
  keysAndValues?.append(cache!.block, k.values, v.to, keyWidth);
  if (keysAndValues !== undefined && firstPosition > 0) {
    cpu.give(mixed);
    mixed = keysAndValues.attend(cache!.block, q.values, half.shape, cpu.take(rows * width));
  } else {
    const arithmetic = precision === 'float32' ? 'float32' : cpu.precision;
    cpu.addon.attentionForward(
      mixed,
      logSumExp,
      { q: q.values, k: k.values, v: v.to },
      attentionShape(half),
      arithmetic,
    );
  }
  const o = through(half.o, mixed);
  if (y !== null) residual(cpu, cpu.floats(y), input, o.to);
  cpu.give(o.to);
  return {
    normed,
    rstd,
    q: q.values,
    k: k.values,
    v: v.to,
    mixed,
    logSumExp,
    linear: { q: q.state, k: k.state, v: v.state, o: o.state },
  };
}

export function composedAttentionBackward(
  cpu: CpuMemory,
  gradients: AttentionGradients,
  dyBuffer: DeviceBuffer,
  x: DeviceBuffer,
  half: AttentionHalf,
  state: ComposedAttention,
): void {
  const { batch, time, heads, kvHeads } = half.shape;
  const rows = batch * time;
  const dy = cpu.floats(dyBuffer);
  const { normed, q, k, v, mixed, logSumExp, linear } = state;
  const dmixed = cpu.take(mixed.length);
  linearBackward(cpu, dmixed, false, gradients.o, dy, mixed, rows, half.o, linear.o);
  const [dq, dk, dv] = [cpu.take(q.length), cpu.take(k.length), cpu.take(v.length)];
  cpu.addon.attentionBackward(
    { q: dq, k: dk, v: dv },
    dmixed,
    { q, k, v },
    mixed,
    logSumExp,
    attentionShape(half),
    cpu.precision,
  );
  cpu.give(dmixed);
  const dn = cpu.take(normed.length);
  const back = (part: Float32Array, layer: Layer, into: LayerGradients, of: LinearState, adds: boolean) => {
    linearBackward(cpu, dn, adds, into, part, normed, rows, layer, of);
    cpu.give(part);
  };
  const turnedBack = (part: Float32Array, count: number): Float32Array => {
    const to = cpu.take(part.length);
    turn(cpu, to, part, half, count, 0, true);
    cpu.give(part);
    return to;
  };
  back(dv, half.v, gradients.v, linear.v, false);
  back(turnedBack(dk, kvHeads), half.k, gradients.k, linear.k, true);
  back(turnedBack(dq, heads), half.q, gradients.q, linear.q, true);
  normBackward(cpu, gradients, dn, dy, x, half, state.rstd, rows);
  for (const array of [dn, normed, state.rstd, q, k, v, mixed, logSumExp]) cpu.give(array);
}

export function composedMlpForward(
  cpu: CpuMemory,
  y: DeviceBuffer | null,
  x: DeviceBuffer,
  half: MlpHalf,
  { precision }: Pick<ForwardMode, 'precision'>,
): ComposedMlp {
  const { batch, time } = half.shape;
  const rows = batch * time;
  const input = cpu.floats(x);
  const { normed, rstd } = norm(cpu, input, half, rows);
  const through = (layer: Layer, from: Float32Array) => {
    const to = cpu.take(rows * layer.outFeatures);
    return { to, state: linearForward(cpu, to, from, rows, layer, { precision, time }) };
  };
  const gate = through(half.gate, normed);
  const up = through(half.up, normed);
  const inner = cpu.take(gate.to.length);
  cpu.addon.swigluForward(inner, gate.to, up.to);
  const down = through(half.down, inner);
  if (y !== null) residual(cpu, cpu.floats(y), input, down.to);
  cpu.give(down.to);
  return {
    normed,
    rstd,
    gate: gate.to,
    up: up.to,
    inner,
    linear: { gate: gate.state, up: up.state, down: down.state },
  };
}

export function composedMlpBackward(
  cpu: CpuMemory,
  gradients: MlpGradients,
  dyBuffer: DeviceBuffer,
  x: DeviceBuffer,
  half: MlpHalf,
  { normed, rstd, gate, up, inner, linear }: ComposedMlp,
): void {
  const rows = half.shape.batch * half.shape.time;
  const dy = cpu.floats(dyBuffer);
  const [dinner, dgate, dup] = [cpu.take(inner.length), cpu.take(gate.length), cpu.take(up.length)];
  linearBackward(cpu, dinner, false, gradients.down, dy, inner, rows, half.down, linear.down);
  cpu.addon.swigluBackward(dgate, dup, dinner, gate, up);
  const dn = cpu.take(normed.length);
  linearBackward(cpu, dn, false, gradients.up, dup, normed, rows, half.up, linear.up);
  linearBackward(cpu, dn, true, gradients.gate, dgate, normed, rows, half.gate, linear.gate);
  normBackward(cpu, gradients, dn, dy, x, half, rstd, rows);
  for (const array of [dinner, dgate, dup, dn, normed, rstd, gate, up, inner]) cpu.give(array);
}

export function releaseComposed(cpu: CpuMemory, state: ComposedAttention | ComposedMlp): void {
  for (const linear of Object.values(state.linear)) releaseLinearState(cpu, linear);
  for (const array of Object.values(state)) if (array instanceof Float32Array) cpu.give(array);
}

type Normed = Pick<AttentionHalf | MlpHalf, 'gain' | 'epsilon'> & { shape: { hidden: number } };

function norm(cpu: CpuMemory, x: Float32Array, { gain, epsilon, shape }: Normed, rows: number) {
  const [normed, rstd] = [cpu.take(x.length), cpu.take(rows)];
  cpu.addon.rmsNormForward(normed, rstd, x, cpu.floats(gain), rows, shape.hidden, epsilon);
  return { normed, rstd };
}

/** dx = what the residual passes on, and what comes through the norm. */
function normBackward(
  cpu: CpuMemory,
  { dx, gain: dgain }: { dx: DeviceBuffer; gain: DeviceBuffer },
  dn: Float32Array,
  dy: Float32Array,
  x: DeviceBuffer,
  { gain, shape }: Normed,
  rstd: Float32Array,
  rows: number,
): void {
  const through = cpu.take(dn.length);
  const input = cpu.floats(x);
  cpu.addon.rmsNormBackward(
    through,
    cpu.floats(dgain),
    dn,
    input,
    cpu.floats(gain),
    rstd,
    rows,
    shape.hidden,
  );
  residual(cpu, cpu.floats(dx), dy, through);
  cpu.give(through);
}

function residual(cpu: CpuMemory, sum: Float32Array, x: Float32Array, y: Float32Array): void {
  sum.set(x);
  cpu.addon.addInPlace(sum, y);
}

function turn(
  cpu: CpuMemory,
  to: Float32Array,
  from: Float32Array,
  { shape: { batch, time, headDim }, angles }: AttentionHalf,
  heads: number,
  firstPosition: number,
  inverse: boolean,
): void {
  const values = { cos: cpu.floats(angles.cos), sin: cpu.floats(angles.sin) };
  cpu.addon.rotary(to, from, values, { batch, time, heads, headDim, firstPosition }, inverse);
}

function attentionShape({ shape }: AttentionHalf): NativeAttentionShape {
  const { batch, time, heads, kvHeads, headDim } = shape;
  return { batch, time, heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim) };
}
