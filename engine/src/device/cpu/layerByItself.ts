import type { ForwardMode, Layer, LayerAdapter } from '../device.js';
import type { CpuMemory } from './cpuMemory.js';
import { scaleOf } from './fusedHalves.js';
import type { ProductPrecision } from './nativeAddon.js';

/**
 * y[rows, out] = one linear layer of x[rows, in], for probes and generation: without dropout and without a backward pass. In float32 from
 * the float32 weight and with a separate adapter path, whatever the graph.
 */
export function layerByItself(
  cpu: CpuMemory,
  y: Float32Array,
  x: Float32Array,
  rows: number,
  layer: Layer,
  precision: ForwardMode['precision'],
): void {
  const { base, weight, inFeatures, outFeatures, bias } = layer;
  if (precision === 'float32' || base === null) {
    const arithmetic = precision === 'float32' ? 'float32' : cpu.precision;
    multiply(cpu, y, x, cpu.floats(weight), [rows, outFeatures, inFeatures], arithmetic);
    cpu.rest(weight);
    if (layer.adapter !== null) addPath(cpu, y, x, rows, layer, layer.adapter, arithmetic);
  } else {
    const adapter = layer.adapter?.graph === 'separate' ? layer.adapter : null;
    const isInKernel = adapter !== null && typeof adapter.scale === 'number';
    const xa = isInKernel ? cpu.take(rows * adapter.rank) : null;
    const inKernel = isInKernel
      ? {
          rank: adapter.rank,
          a: cpu.floats(adapter.a),
          b: cpu.floats(adapter.b),
          scale: adapter.scale as number,
        }
      : null;
    cpu.addon.linearForward(y, xa, x, { base: cpu.panels(base), adapter: inKernel }, rows);
    if (xa !== null) cpu.give(xa);
    if (adapter !== null && !isInKernel) addPath(cpu, y, x, rows, layer, adapter, cpu.precision);
  }
  if (bias !== null) addToRows(y, cpu.floats(bias));
}

/** y += (x A * scale) B: the scale is applied to x A, which has the fewest elements. */
function addPath(
  cpu: CpuMemory,
  y: Float32Array,
  x: Float32Array,
  rows: number,
  { inFeatures, outFeatures }: Layer,
  { a, b, rank, scale }: LayerAdapter,
  precision: ProductPrecision,
): void {
  const [p, z] = [cpu.take(rows * rank), cpu.take(y.length)];
  const factor = scaleOf(cpu, scale);
  multiply(cpu, p, x, cpu.floats(a), [rows, rank, inFeatures], precision);
  for (let i = 0; i < p.length; i++) p[i]! *= factor;
  multiply(cpu, z, p, cpu.floats(b), [rows, outFeatures, rank], precision);
  cpu.addon.addInPlace(y, z);
  cpu.give(p);
  cpu.give(z);
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
