import type {
  DeviceBuffer,
  Dropout,
  ForwardMode,
  FrozenBase,
  Layer,
  LayerAdapter,
  LayerGradients,
} from '../device.js';
import { dropoutMask } from '../dropout.js';
import type { CpuMemory } from './cpuMemory.js';
import type { FrozenLayer, ProductPrecision } from './nativeAddon.js';

/**
 * One linear layer by itself, for halves that no kernel computes whole: dropout, a trainable scale, probes in float32 and writing text.
 */

/** What the backward pass of a layer needs beside its input. */
export interface LinearState {
  /** x A of the kernel that has the adapter in it. */
  xa: Float32Array | null;
  path: PathState | null;
}

/** Of an adapter that is computed beside its base, step by step. */
interface PathState {
  /** [rows, in], null without dropout */
  mask: Float32Array | null;
  /** mask * x; null without dropout, where it is x itself */
  dropped: Float32Array | null;
  /** dropped A, and the same times the scale: [rows, rank] */
  p: Float32Array;
  scaled: Float32Array;
  factor: number;
}

/** y[rows, out] = the layer of x[rows, in]. In float32 from the float32 weight and by the separate path, whatever the graph is. */
export function linearForward(
  cpu: CpuMemory,
  y: Float32Array,
  x: Float32Array,
  rows: number,
  layer: Layer,
  { precision, time }: { precision: ForwardMode['precision']; time: number },
): LinearState {
  const { base, weight, inFeatures, outFeatures, bias } = layer;
  const state: LinearState = { xa: null, path: null };
  if (precision === 'float32' || base === null) {
    const arithmetic = precision === 'float32' ? 'float32' : cpu.precision;
    multiply(cpu, y, x, cpu.floats(weight), [rows, outFeatures, inFeatures], arithmetic);
    cpu.rest(weight);
    if (layer.adapter !== null) state.path = addPath(cpu, y, x, rows, layer, layer.adapter, arithmetic, time);
  } else {
    const adapter = layer.adapter?.graph === 'separate' ? layer.adapter : null;
    const isFused = adapter !== null && isPlain(adapter);
    if (isFused) state.xa = cpu.take(rows * adapter.rank);
    cpu.addon.linearForward(y, state.xa, x, frozenLayer(cpu, base, isFused ? adapter : null), rows);
    if (adapter !== null && !isFused)
      state.path = addPath(cpu, y, x, rows, layer, adapter, cpu.precision, time);
  }
  if (bias !== null) addToRows(y, cpu.floats(bias));
  return state;
}

/**
 * dx[rows, in] is added to (`adds`) or written, the gradients that are wanted are written. What the state holds is given back.
 */
export function linearBackward(
  cpu: CpuMemory,
  dx: Float32Array,
  adds: boolean,
  gradients: LayerGradients,
  dy: Float32Array,
  x: Float32Array,
  rows: number,
  layer: Layer,
  state: LinearState,
): void {
  const { inFeatures, outFeatures } = layer;
  // The parts of dx are summed in the order of a tape that runs backward: the adapter's, then the base's.
  let isWritten = adds;
  const add = (write: (target: Float32Array) => void): void => {
    if (!isWritten) write(dx);
    else {
      const part = cpu.take(dx.length);
      write(part);
      cpu.addon.addInPlace(dx, part);
      cpu.give(part);
    }
    isWritten = true;
  };
  if (gradients.bias !== null) sumOfRows(cpu.floats(gradients.bias), dy);
  if (state.path !== null) {
    const { adapter } = layer;
    add((target) => pathBackward(cpu, target, gradients, dy, x, rows, layer, adapter!, state.path!));
  }
  add((target) => {
    if (layer.base === null) {
      const { precision } = cpu;
      const w = cpu.floats(layer.weight);
      multiply(cpu, target, dy, w, [rows, inFeatures, outFeatures], precision, { transposeB: true });
    } else {
      const { xa } = state;
      const adapter = xa === null ? null : layer.adapter;
      const values = (buffer: DeviceBuffer | null) =>
        adapter === null ? null : buffer && cpu.floats(buffer);
      const frozen = frozenLayer(cpu, layer.base, adapter);
      cpu.addon.linearBackward(target, values(gradients.a), values(gradients.b), dy, x, xa, frozen, rows);
    }
  });
  if (gradients.weight !== null) {
    const dw = cpu.floats(gradients.weight);
    multiply(cpu, dw, x, dy, [inFeatures, outFeatures, rows], cpu.precision, { transposeA: true });
  }
  releaseLinearState(cpu, state);
}

export function releaseLinearState(cpu: CpuMemory, { xa, path }: LinearState): void {
  for (const array of [xa, path?.mask, path?.dropped, path?.p, path?.scaled]) if (array) cpu.give(array);
}

/** Whether the kernels know the adapter: no dropout, a constant scale. */
export function isPlain({ scale, dropout }: LayerAdapter): boolean {
  return typeof scale === 'number' && dropout === null;
}

function frozenLayer(cpu: CpuMemory, base: FrozenBase, adapter: LayerAdapter | null): FrozenLayer {
  return {
    base: cpu.panels(base),
    adapter: adapter && {
      rank: adapter.rank,
      a: cpu.floats(adapter.a),
      b: cpu.floats(adapter.b),
      scale: adapter.scale as number,
    },
  };
}

/** The scale as products take it, in float32. */
export function scaleOf(cpu: CpuMemory, { scale }: LayerAdapter): number {
  return Math.fround(typeof scale === 'number' ? scale : Math.tanh(cpu.floats(scale)[0]!));
}

/** y += ((mask x) A * scale) B: the scale is applied at the rank, where there is least to multiply. */
function addPath(
  cpu: CpuMemory,
  y: Float32Array,
  x: Float32Array,
  rows: number,
  layer: Layer,
  adapter: LayerAdapter,
  precision: ProductPrecision,
  time: number,
): PathState {
  const { a, b, rank, dropout } = adapter;
  const { inFeatures, outFeatures } = layer;
  let mask: Float32Array | null = null;
  let dropped: Float32Array | null = null;
  if (dropout !== null) {
    mask = cpu.take(x.length);
    dropped = cpu.take(x.length);
    fillMask(cpu, mask, dropout, layer, time);
    for (let i = 0; i < x.length; i++) dropped[i] = x[i]! * mask[i]!;
  }
  const [p, scaled, z] = [cpu.take(rows * rank), cpu.take(rows * rank), cpu.take(y.length)];
  const factor = scaleOf(cpu, adapter);
  multiply(cpu, p, dropped ?? x, cpu.floats(a), [rows, rank, inFeatures], precision);
  for (let i = 0; i < p.length; i++) scaled[i] = p[i]! * factor;
  multiply(cpu, z, scaled, cpu.floats(b), [rows, outFeatures, rank], precision);
  cpu.addon.addInPlace(y, z);
  cpu.give(z);
  return { mask, dropped, p, scaled, factor };
}

function fillMask(cpu: CpuMemory, mask: Float32Array, dropout: Dropout, layer: Layer, time: number): void {
  if (dropout.version === 1) return dropoutMask(mask, dropout, layer, time);
  const { share, seed, step, firstSequence } = dropout;
  const sequenceLength = time * layer.inFeatures;
  cpu.addon.dropoutMask(mask, { share, seed, step, firstSequence, layer: layer.index, sequenceLength });
}

function pathBackward(
  cpu: CpuMemory,
  dx: Float32Array,
  gradients: LayerGradients,
  dy: Float32Array,
  x: Float32Array,
  rows: number,
  { inFeatures, outFeatures }: Layer,
  { a, b, scale, rank }: LayerAdapter,
  { mask, dropped, p, scaled, factor }: PathState,
): void {
  const { precision } = cpu;
  const dp = cpu.take(rows * rank);
  multiply(cpu, dp, dy, cpu.floats(b), [rows, rank, outFeatures], precision, { transposeB: true });
  const db = cpu.floats(gradients.b!);
  multiply(cpu, db, scaled, dy, [rank, outFeatures, rows], precision, { transposeA: true });
  if (gradients.scale !== null && typeof scale !== 'number') {
    let sum = 0;
    for (let i = 0; i < p.length; i++) sum += Math.fround(dp[i]! * p[i]!);
    // scale = tanh(g): its derivative is 1 - scale², each step in float32.
    const slope = Math.fround(1 - Math.fround(factor * factor));
    cpu.floats(gradients.scale)[0] = Math.fround(sum) * slope;
  }
  for (let i = 0; i < dp.length; i++) dp[i]! *= factor;
  multiply(cpu, dx, dp, cpu.floats(a), [rows, inFeatures, rank], precision, { transposeB: true });
  if (gradients.a !== null)
    multiply(cpu, cpu.floats(gradients.a), dropped ?? x, dp, [inFeatures, rank, rows], precision, {
      transposeA: true,
    });
  if (mask !== null) for (let i = 0; i < dx.length; i++) dx[i]! *= mask[i]!;
  cpu.give(dp);
}

/** c[m, n] = op(a) op(b) over k. */
export function multiply(
  cpu: CpuMemory,
  c: Float32Array,
  a: Float32Array,
  b: Float32Array,
  [m, n, k]: readonly [m: number, n: number, k: number],
  precision: ProductPrecision,
  { transposeA = false, transposeB = false } = {},
): void {
  cpu.addon.matmul(c, a, b, { batch: 1, m, n, k, transposeA, transposeB }, precision);
}

function addToRows(y: Float32Array, bias: Float32Array): void {
  for (let row = 0; row < y.length; row += bias.length)
    for (let i = 0; i < bias.length; i++) y[row + i]! += bias[i]!;
}

/** Each column is summed in float64, in the order of the rows. */
function sumOfRows(sums: Float32Array, dy: Float32Array): void {
  for (let column = 0; column < sums.length; column++) {
    let sum = 0;
    for (let i = column; i < dy.length; i += sums.length) sum += dy[i]!;
    sums[column] = sum;
  }
}
