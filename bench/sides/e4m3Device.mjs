// The device `native`, except that products with a frozen base use e4m3 codes, as on the device `cuda` with FP8_BASE.
import { loadNativeAddon } from '../../engine/dist/index.js';
import { CpuDevice } from '../../engine/dist/device/cpu/cpuDevice.js';
import * as halves from './composedHalves.mjs';

/**
 * Opens it with the given number of threads; codes are multiplied by bfloat16 instructions, in which they are exact.
 * @param {{ threads: number, instructionSet?: string }} options
 * @returns {import('../../engine/dist/device/device.js').Device}
 */
export function openE4m3Cpu({ threads, instructionSet }) {
  const native = loadNativeAddon();
  const { instructionSets, cpuModel } = native.describe();
  const set = instructionSet ?? instructionSets[0];
  return new E4m3Cpu(
    {
      ...{ name: 'native', model: cpuModel, instructionSet: set, threadCount: threads },
      ...{ precision: 'bfloat16', basePrecision: 'fp8', libraries: {} },
    },
    native.open({ instructionSet: set, threads }),
  );
}

/**
 * Layers with the same input are one product, so that a row of their gradients has a single scale, as on the card. Weights are packed
 * twice, with a scale per column of y and per row of dx. Adapters have a separate path in bfloat16. Probes, merges and unfrozen weights use
 * the device's own code.
 */
class E4m3Cpu extends CpuDevice {
  #cpu = new Proxy(this, { get: (_, key) => this.#found(key) });
  #calls = {
    __proto__: this.addon,
    linearForward: (y, xa, x, layer, rows) => this.#forward(y, xa, x, layer, rows),
    linearBackward: (dx, da, db, dy, x, xa, layer, rows) =>
      this.#backward(dx, da, db, dy, x, xa, layer, rows),
  };

  packBase(weight, inFeatures, outFeatures) {
    const sizes = { inFeatures, outFeatures, bytes: 2 * inFeatures * outFeatures };
    return { ...sizes, weight, version: 1, group: null, place: 0 };
  }

  repackBase(base) {
    base.version++;
  }

  packMerged() {
    throw new TypeError('packMerged: a base in e4m3 takes no adapter');
  }

  releaseBase({ group }) {
    for (const panels of group?.panels ?? []) this.addon.releaseBase(panels);
    if (group) group.panels = [];
  }

  attentionHalfForward(y, x, half, mode) {
    if (half.q.base === null || mode.precision === 'float32')
      return super.attentionHalfForward(y, x, half, mode);
    if (mode.cache !== null) throw new Error('The device of this bench writes no text');
    this.#join([half.q, half.k, half.v], [half.o]);
    return this.#kept(halves.composedAttentionForward(this.#cpu, y, x, half), mode);
  }

  attentionHalfBackward(gradients, dy, x, kept, half) {
    if (half.q.base === null) return super.attentionHalfBackward(gradients, dy, x, kept, half);
    const state = kept?.composed ?? halves.composedAttentionForward(this.#cpu, null, x, half);
    halves.composedAttentionBackward(this.#cpu, gradients, dy, x, half, state);
  }

  mlpHalfForward(y, x, half, mode) {
    if (half.gate.base === null || mode.precision === 'float32')
      return super.mlpHalfForward(y, x, half, mode);
    this.#join([half.gate, half.up], [half.down]);
    return this.#kept(halves.composedMlpForward(this.#cpu, y, x, half), mode);
  }

  mlpHalfBackward(gradients, dy, x, kept, half) {
    if (half.gate.base === null) return super.mlpHalfBackward(gradients, dy, x, kept, half);
    const state = kept?.composed ?? halves.composedMlpForward(this.#cpu, null, x, half);
    halves.composedMlpBackward(this.#cpu, gradients, dy, x, half, state);
  }

  releaseState(state) {
    if (state?.composed) halves.releaseComposed(this, state.composed);
    else super.releaseState(state);
  }

  #kept(composed, { keepsState }) {
    if (keepsState) return { composed };
    halves.releaseComposed(this, composed);
    return null;
  }

  /** The device as the halves see it: with the products with a base from here. */
  #found(key) {
    if (key === 'addon') return this.#calls;
    if (key === 'panels') return (base) => base;
    const value = Reflect.get(this, key, this);
    return typeof value === 'function' ? value.bind(this) : value;
  }

  #join(...groups) {
    for (const layers of groups) {
      const bases = layers.map(({ base }) => base);
      if (bases.every(({ group }) => group !== null && group === bases[0].group)) continue;
      const group = { bases, versions: null, panels: [], columnScales: null, rowScales: null, waiting: [] };
      bases.forEach((base, place) => Object.assign(base, { group, place }));
    }
  }

  /** The codes of all layers of a group as adjacent columns, from their current float32 weights. */
  #packed(group) {
    const { bases } = group;
    const versions = bases.map(({ version }) => version).join();
    if (group.versions === versions) return group;
    const { inFeatures } = bases[0];
    const width = bases.reduce((sum, { outFeatures }) => sum + outFeatures, 0);
    const all = new Float32Array(inFeatures * width);
    let first = 0;
    for (const { weight, outFeatures } of bases) {
      const values = this.floats(weight);
      for (let row = 0; row < inFeatures; row++)
        all.set(values.subarray(row * outFeatures, (row + 1) * outFeatures), row * width + first);
      this.rest(weight);
      first += outFeatures;
    }
    for (const panels of group.panels) this.addon.releaseBase(panels);
    const columns = transposed(all, inFeatures, width);
    group.columnScales = code(columns, inFeatures);
    const forwards = transposed(columns, width, inFeatures);
    group.rowScales = code(all, width);
    group.panels = [forwards, all].map((codes) => this.addon.packBase(codes, inFeatures, width, 'bfloat16'));
    return Object.assign(group, { versions, width });
  }

  /** y = x W with codes, + s (x A) B. The first layer of a group computes it for all of its layers. */
  #forward(y, xa, x, { base, adapter }, rows) {
    const { group, place, outFeatures } = base;
    if (place === 0) group.made = this.#product(group, x, rows);
    const { made, width } = group;
    const first = group.bases.slice(0, place).reduce((sum, other) => sum + other.outFeatures, 0);
    for (let row = 0; row < rows; row++)
      y.set(made.subarray(row * width + first, row * width + first + outFeatures), row * outFeatures);
    if (adapter === null) return;
    const { a, b, rank, scale } = adapter;
    this.#matmul(xa, x, a, [rows, rank, base.inFeatures]);
    const part = this.take(y.length);
    this.#matmul(part, xa, b, [rows, outFeatures, rank]);
    addScaled(y, part, scale);
    this.give(part);
  }

  #product(group, x, rows) {
    const { panels, columnScales, width } = this.#packed(group);
    const codes = x.slice();
    roundToBfloat16(codes);
    const scales = code(codes, codes.length / rows);
    const made = new Float32Array(rows * width);
    this.addon.linearForward(made, null, codes, { base: panels[0], adapter: null }, rows);
    for (let row = 0, i = 0; row < rows; row++)
      for (let column = 0; column < width; column++, i++) made[i] *= scales[row] * columnScales[column];
    return made;
  }

  /**
   * dx of the adapter, and its gradients. dx of the base is computed for all layers of the group when the first one's turn comes, which is
   * last: by then the gradients of the others have been stored here.
   */
  #backward(dx, da, db, dy, x, xa, { base, adapter }, rows) {
    const { group, place, inFeatures, outFeatures } = base;
    dx.fill(0);
    if (adapter !== null) {
      const { a, b, rank, scale } = adapter;
      const dp = this.take(rows * rank);
      this.#matmul(dp, dy, b, [rows, rank, outFeatures], { transposeB: true });
      if (db) scaled(this.#matmul(db, xa, dy, [rank, outFeatures, rows], { transposeA: true }), scale);
      if (da) scaled(this.#matmul(da, x, dp, [inFeatures, rank, rows], { transposeA: true }), scale);
      scaled(this.#matmul(dx, dp, a, [rows, inFeatures, rank], { transposeB: true }), scale);
      this.give(dp);
    }
    group.waiting[place] = dy.slice();
    if (place > 0) return;
    const { panels, rowScales, width } = this.#packed(group);
    const all = new Float32Array(rows * width);
    let first = 0;
    group.bases.forEach(({ outFeatures: count }, of) => {
      const part = group.waiting[of];
      for (let row = 0; row < rows; row++)
        all.set(part.subarray(row * count, (row + 1) * count), row * width + first);
      first += count;
    });
    group.waiting = [];
    roundToBfloat16(all);
    const scales = code(all, width);
    // The scale of a weight's row applies to a column of dx.
    const through = this.take(dx.length);
    this.addon.linearBackward(through, null, null, all, null, null, { base: panels[1], adapter: null }, rows);
    for (let row = 0, i = 0; row < rows; row++)
      for (let column = 0; column < inFeatures; column++, i++)
        dx[i] += through[i] * scales[row] * rowScales[column];
    this.give(through);
  }

  #matmul(c, a, b, [m, n, k], { transposeA = false, transposeB = false } = {}) {
    this.addon.matmul(c, a, b, { batch: 1, m, n, k, transposeA, transposeB }, 'bfloat16');
    return c;
  }
}

function scaled(values, factor) {
  for (let i = 0; i < values.length; i++) values[i] *= factor;
}

function addScaled(to, values, factor) {
  for (let i = 0; i < to.length; i++) to[i] += factor * values[i];
}

function transposed(values, rows, columns) {
  const to = new Float32Array(values.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) to[column * rows + row] = values[row * columns + column];
  return to;
}

/** In place, to nearest even: the type between products on the card. */
export function roundToBfloat16(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) bits[i] = (bits[i] + 0x7fff + ((bits[i] >>> 16) & 1)) & 0xffff0000;
}

/** Below the smallest normal value, e4m3 steps are 2^-9: adding a float32 whose spacing is that rounds to them. */
const smallestNormal = 2 ** -6;
const roundsToSteps = 1.5 * 2 ** 14;

/** Converts rows to e4m3 values, with the largest magnitude of each at 448; returns the factor of each row. */
export function code(values, columns) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const scales = new Float32Array(values.length / columns);
  for (let row = 0, begin = 0; row < scales.length; row++, begin += columns) {
    let largest = 0;
    for (let i = begin; i < begin + columns; i++) largest = Math.max(largest, Math.abs(values[i]));
    scales[row] = largest > 0 ? largest / 448 : 1;
    const inverse = largest > 0 ? Math.fround(448 / largest) : 1;
    for (let i = begin; i < begin + columns; i++) {
      values[i] *= inverse;
      // The largest code is 448; a product that rounding puts one step above it gets that code.
      if (Math.abs(values[i]) < smallestNormal)
        values[i] = Math.fround(values[i] + roundsToSteps) - roundsToSteps;
      else bits[i] = (bits[i] + 0x7ffff + ((bits[i] >>> 20) & 1)) & 0xfff00000;
    }
  }
  return scales;
}
