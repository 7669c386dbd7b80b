import { describe, expect, it } from 'vitest';
import { loadNativeAddon } from '../../engine/dist/device/cpu/nativeAddon.js';
import { seeded } from '@relora/engine/conformance';

const addon = loadNativeAddon();

/** The published values of 4-bit NormalFloat (arXiv 2305.14314, appendix E). */
const values = [
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
];

/** w after rounding to four bits: the nearest value times the largest of its block of 64, rounded to bfloat16. */
function kept(w: Float32Array): Float64Array {
  const result = new Float64Array(w.length);
  for (let first = 0; first < w.length; first += 64) {
    const block = w.subarray(first, first + 64);
    const scale = Math.max(...block.map(Math.abs));
    block.forEach((value, index) => {
      const nearest = values.reduce((best, candidate) =>
        Math.abs(candidate - value / scale) < Math.abs(best - value / scale) ? candidate : best,
      );
      result[first + index] = roundToBfloat16(nearest * scale);
    });
  }
  return result;
}

function roundToBfloat16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  bits[0] = (bits[0]! + 0x7fff + ((bits[0]! >> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0]!;
}

function forward(w: Float32Array, x: Float32Array, rows: number, inFeatures: number, outFeatures: number) {
  const base = addon.packBase(w, inFeatures, outFeatures, 'nf4');
  const y = new Float32Array(rows * outFeatures);
  addon.linearForward(y, null, x, { base, adapter: null }, rows);
  const dx = new Float32Array(rows * inFeatures);
  addon.linearBackward(dx, null, null, y, x, null, { base, adapter: null }, rows);
  const bytes = addon.packedBaseBytes(base);
  addon.releaseBase(base);
  return { y, dx, bytes };
}

describe.each(addon.describe().instructionSets)('a base in four bits on %s', (instructionSet) => {
  it.each([
    [1, 1, 1],
    [3, 7, 9],
    [5, 64, 64],
    [17, 33, 70],
  ])('is the nearest values of each block, %i x %i x %i', (rows, inFeatures, outFeatures) => {
    addon.configure({ instructionSet, threads: 2 });
    const w = seeded(inFeatures * outFeatures, 'w');
    // Powers of two are exact in bfloat16, so only the base is rounded.
    const x = Float32Array.from(
      { length: rows * inFeatures },
      (_, index) => 2 ** (index % 3) * (index % 2 ? 1 : -1),
    );
    const { y, bytes } = forward(w, x, rows, inFeatures, outFeatures);
    const held = kept(w);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < outFeatures; column++) {
        let expected = 0;
        let size = 0;
        for (let k = 0; k < inFeatures; k++) {
          const term = x[row * inFeatures + k]! * held[k * outFeatures + column]!;
          expected += term;
          size += Math.abs(term);
        }
        const error = Math.abs(y[row * outFeatures + column]! - expected);
        expect(error).toBeLessThanOrEqual(inFeatures * 2 ** -24 * size);
      }
    }
    expect(bytes).toBe(Math.ceil(w.length / 64) * 36);
  });

  it('is the same in both directions', () => {
    addon.configure({ instructionSet, threads: 2 });
    // x = 1 at one input at a time shows the rows of w; dy wᵀ must match products with the same w.
    const [inFeatures, outFeatures] = [5, 70];
    const w = seeded(inFeatures * outFeatures, 'both ways');
    const x = new Float32Array(inFeatures * inFeatures);
    for (let i = 0; i < inFeatures; i++) x[i * inFeatures + i] = 1;
    const { y, dx } = forward(w, x, inFeatures, inFeatures, outFeatures);
    for (let i = 0; i < inFeatures; i++) {
      for (let j = 0; j < inFeatures; j++) {
        let expected = 0;
        for (let k = 0; k < outFeatures; k++) expected += y[i * outFeatures + k]! * y[j * outFeatures + k]!;
        expect(dx[i * inFeatures + j]).toBeCloseTo(expected, 3);
      }
    }
  });

  it('turns a block with a weight that is not finite into NaN, and no other', () => {
    addon.configure({ instructionSet, threads: 1 });
    const w = new Float32Array(128).fill(1);
    w[3] = Infinity;
    const { y } = forward(w, Float32Array.of(1), 1, 1, 128);
    expect([...y.subarray(0, 64)].every(Number.isNaN)).toBe(true);
    expect([...y.subarray(64)]).toEqual(new Array(64).fill(1));
  });
});
