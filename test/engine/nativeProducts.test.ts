import { afterAll, describe, expect, it } from 'vitest';
import { loadNativeAddon, type ProductPrecision } from '../../engine/dist/device/cpu/nativeAddon.js';
import { excess, largest, matrix, multiply, roundToBfloat16, seededArray } from './nativeReference.js';

const addon = loadNativeAddon();
const { instructionSets: offeredSets } = addon.describe();
const instructionSets = [...offeredSets, 'amx-model' as const, 'neonBf16-model' as const];
const precisions: ProductPrecision[] = ['float32', 'bfloat16'];
const epsilon = 2 ** -24;

const cases = instructionSets.flatMap((instructionSet) =>
  precisions.map((precision) => ({ instructionSet, precision })),
);
const rounded = (values: Float32Array, precision: ProductPrecision) =>
  precision === 'bfloat16' ? roundToBfloat16(values) : values;

afterAll(() => addon.configure({ instructionSet: instructionSets[0]!, threads: 1 }));

// Tile edges (6, 16 and 32 rows, 16 to 64 columns), block edges (120 rows, 256 and 512 of k), and ones.
const sizes = [
  [1, 1, 1],
  [3, 17, 5],
  [1, 65, 33],
  [6, 64, 32],
  [7, 63, 31],
  [5, 16, 513],
  [121, 15, 257],
  [125, 129, 64],
  [17, 1, 300],
  [128, 8, 19],
  [33, 49, 34],
  [47, 32, 545],
] as const;

describe.each(cases)('products with $instructionSet in $precision', ({ instructionSet, precision }) => {
  it.each(sizes)('match float64 for m=%i, n=%i, k=%i in all transpositions', (m, n, k) => {
    addon.configure({ instructionSet, threads: 2 });
    const a = seededArray(m * k, 1);
    const b = seededArray(k * n, 2);
    const c = new Float32Array(m * n);
    for (const transposeA of [false, true]) {
      for (const transposeB of [false, true]) {
        addon.matmul(c.fill(NaN), a, b, { batch: 1, m, n, k, transposeA, transposeB }, precision);
        // Operands are rounded to nearest even first, so only the rounding of the sum remains.
        const { value, magnitude } = multiply(
          matrix(rounded(a, precision), m, k, transposeA),
          matrix(rounded(b, precision), k, n, transposeB),
        );
        expect(excess(c, value, (i) => (k + 1) * epsilon * magnitude[i]!)).toBeLessThanOrEqual(0);
      }
    }
  });

  it('multiply each entry of a batch apart, small and large', () => {
    addon.configure({ instructionSet, threads: 2 });
    const [batch, m, n, k] = [5, 127, 21, 34];
    const a = seededArray(batch * m * k, 3);
    const b = seededArray(batch * k * n, 4);
    const c = new Float32Array(batch * m * n);
    addon.matmul(c, a, b, { batch, m, n, k, transposeA: false, transposeB: true }, precision);
    const single = new Float32Array(m * n);
    for (let i = 0; i < batch; i++) {
      const [left, right] = [a.subarray(i * m * k, (i + 1) * m * k), b.subarray(i * k * n, (i + 1) * k * n)];
      addon.matmul(
        single,
        left,
        right,
        { batch: 1, m, n, k, transposeA: false, transposeB: true },
        precision,
      );
      expect(c.subarray(i * m * n, (i + 1) * m * n)).toEqual(single);
    }
  });

  it('give the same bits with one thread and two, for arrays that begin anywhere', () => {
    const [m, n, k] = [250, 150, 600];
    const a = seededArray(m * k + 3, 5).subarray(3);
    const b = seededArray(k * n + 1, 6).subarray(1);
    const run = (threads: number) => {
      addon.configure({ instructionSet, threads });
      const c = new Float32Array(m * n + 5).subarray(5);
      addon.matmul(c, a, b, { batch: 1, m, n, k, transposeA: true, transposeB: false }, precision);
      return c;
    };
    expect(run(2)).toEqual(run(1));
  });

  it('let NaN and infinity through', () => {
    addon.configure({ instructionSet, threads: 1 });
    const c = new Float32Array(3);
    addon.matmul(
      c,
      Float32Array.of(NaN, 1),
      Float32Array.of(1, 0, 2, 1, 1, 1),
      { batch: 1, m: 1, n: 3, k: 2, transposeA: false, transposeB: false },
      precision,
    );
    expect([...c]).toEqual([NaN, NaN, NaN]);
    addon.matmul(
      c,
      Float32Array.of(Infinity, 1),
      Float32Array.of(1, 0, -2, 1, 1, 1),
      { batch: 1, m: 1, n: 3, k: 2, transposeA: false, transposeB: false },
      precision,
    );
    expect([...c]).toEqual([Infinity, NaN, -Infinity]);
  });

  it.each([
    [131, 70, 129, 0],
    [131, 70, 129, 8],
    [17, 33, 65, 3],
    [1, 1, 1, 1],
  ])(
    'make a LoRA layer and its gradients: rows=%i, in=%i, out=%i, rank=%i',
    (rows, inFeatures, out, rank) => {
      addon.configure({ instructionSet, threads: 2 });
      const scale = 0.5;
      const x = seededArray(rows * inFeatures, 7);
      const w = seededArray(inFeatures * out, 8, 0.1);
      const a = seededArray(inFeatures * rank, 9, 0.2);
      const b = seededArray(rank * out, 10, 0.2);
      const dy = seededArray(rows * out, 11);
      const base = addon.packBase(w, inFeatures, out, precision);
      expect(addon.packedBaseBytes(base)).toBeGreaterThanOrEqual(
        2 * (precision === 'bfloat16' ? 2 : 4) * w.length,
      );

      const y = new Float32Array(rows * out);
      const xa = new Float32Array(rows * rank);
      addon.linearForward(
        y,
        rank === 0 ? null : xa,
        x,
        { base, adapter: rank === 0 ? null : { rank, a, b, scale } },
        rows,
      );
      const dx = new Float32Array(x.length);
      const da = new Float32Array(a.length);
      const db = new Float32Array(b.length);
      addon.linearBackward(
        dx,
        rank === 0 ? null : da,
        rank === 0 ? null : db,
        dy,
        x,
        rank === 0 ? null : xa,
        { base, adapter: rank === 0 ? null : { rank, a, b, scale } },
        rows,
      );

      const product = (
        p: ArrayLike<number>,
        q: ArrayLike<number>,
        m: number,
        n: number,
        k: number,
        ta = false,
        tb = false,
      ) => multiply(matrix(p, m, k, ta), matrix(q, k, n, tb)).value;
      const sum = (p: Float64Array, q: Float64Array, factor: number) =>
        p.map((value, i) => value + factor * q[i]!);
      const xaExpected = product(x, a, rows, rank, inFeatures);
      const p = product(dy, b, rows, rank, out, false, true).map((value) => scale * value);
      const expected = {
        y: sum(product(x, w, rows, out, inFeatures), product(xaExpected, b, rows, out, rank), scale),
        xa: xaExpected,
        dx: sum(
          product(dy, w, rows, inFeatures, out, false, true),
          product(p, a, rows, inFeatures, rank, false, true),
          1,
        ),
        da: product(x, p, inFeatures, rank, rows, true),
        db: product(xaExpected, dy, rank, out, rows, true).map((value) => scale * value),
      };
      // Two operands and one intermediate are rounded; a bfloat16 rounding is at most 2^-9 of each term.
      const roundings = precision === 'bfloat16' ? 3 * 2 ** -9 : 0;
      const longest = Math.max(rows, inFeatures, out) + rank;
      for (const [name, actual] of Object.entries({ y, xa, dx, da, db })) {
        const values = expected[name as keyof typeof expected];
        const tolerance = (roundings + longest * epsilon) * Math.max(1, largest(values)) * 4;
        expect(
          excess(actual, values, () => tolerance),
          name,
        ).toBeLessThanOrEqual(0);
      }
      addon.releaseBase(base);
      expect(() => addon.packedBaseBytes(base)).toThrow('base has been released');
    },
  );
});

describe('rounding to bfloat16', () => {
  it.each(instructionSets)('goes to nearest even with %s', (instructionSet) => {
    addon.configure({ instructionSet, threads: 1 });
    const values = Float32Array.of(
      1 + 2 ** -8,
      1 + 3 * 2 ** -8,
      1 + 2 ** -8 + 2 ** -20,
      -1 - 2 ** -8,
      3.3895e38,
      1e30,
    );
    const out = new Float32Array(values.length);
    addon.matmul(
      out,
      values,
      Float32Array.of(1),
      { batch: 1, m: values.length, n: 1, k: 1, transposeA: false, transposeB: false },
      'bfloat16',
    );
    expect([...out]).toEqual([...roundToBfloat16(values)]);
    expect([...out.subarray(0, 4)]).toEqual([1, 1 + 2 ** -6, 1 + 2 ** -7, -1]);
  });
});

describe('amx', () => {
  it('is refused, with what there is instead, where the CPU lacks it', () => {
    if (offeredSets.includes('amx')) return;
    expect(() => addon.configure({ instructionSet: 'amx', threads: 1 })).toThrow(
      `options.instructionSet 'amx' is not offered by this CPU, which has ${offeredSets.join(', ')}`,
    );
  });

  it('is modeled on request only', () => {
    expect(offeredSets).not.toContain('amx-model');
  });

  // Intel's description of TDPBF16PS, which real hardware must satisfy too.
  it.each(['amx-model' as const, ...offeredSets.filter((set) => set === 'amx')])(
    'sums even and odd k apart and takes subnormal numbers as zero: %s',
    (instructionSet) => {
      addon.configure({ instructionSet, threads: 1 });
      const dot = (a: number[], b: number[]) => {
        const c = new Float32Array(1);
        const [left, right] = [Float32Array.from(a), Float32Array.from(b)];
        addon.matmul(
          c,
          left,
          right,
          { batch: 1, m: 1, n: 1, k: a.length, transposeA: false, transposeB: false },
          'bfloat16',
        );
        return c[0];
      };
      // Added sequentially, each 1 would be lost against 2^24.
      expect(dot([4096, 1, 0, 1], [4096, 1, 0, 1])).toBe(2 ** 24 + 2);
      expect(dot([2 ** -130], [2 ** 10])).toBe(0);
      expect(dot([2 ** -70], [2 ** -70])).toBe(0);
    },
  );
});

describe('the matrix instructions of ARM', () => {
  const product = (
    instructionSet: (typeof instructionSets)[number],
    [m, n, k]: readonly [number, number, number],
  ) => {
    addon.configure({ instructionSet, threads: 1 });
    const operands = [seededArray(m * k, 11), seededArray(k * n, 12)] as const;
    return [false, true].map((transposed) => {
      const c = seededArray(m * n, 13);
      const shape = { batch: 1, m, n, k, transposeA: transposed, transposeB: !transposed };
      addon.matmul(c, ...operands, shape, 'bfloat16');
      return c;
    });
  };

  it('are modeled on request only', () => {
    expect(offeredSets).not.toContain('neonBf16-model');
  });

  it.skipIf(!offeredSets.includes('neonBf16'))('give the bits of their model', () => {
    for (const size of sizes)
      expect(product('neonBf16', size), String(size)).toEqual(product('neonBf16-model', size));
  });

  // Arm's description of BFMMLA, which real hardware must satisfy too.
  it.each(['neonBf16-model' as const, ...offeredSets.filter((set) => set === 'neonBf16')])(
    'round sums to odd and take subnormal numbers as zero: %s',
    (instructionSet) => {
      addon.configure({ instructionSet, threads: 1 });
      const dot = (...terms: [number, number][]) => {
        const c = new Float32Array(1);
        const [left, right] = [0, 1].map((side) => Float32Array.from(terms, (term) => term[side]!));
        const shape = { batch: 1, m: 1, n: 1, k: terms.length, transposeA: false, transposeB: false };
        addon.matmul(c, left!, right!, shape, 'bfloat16');
        return c[0];
      };
      const [large, one, nothing]: [number, number][] = [
        [4096, 4096],
        [1, 1],
        [0, 0],
      ];
      // 2^24 + 1 is between two floats; 2^24 + 2 is odd in its last bit, 2^24 is even.
      expect(dot(large!, one!)).toBe(2 ** 24 + 2);
      expect(dot([4096, -4096], [-1, 1])).toBe(-(2 ** 24 + 2));
      // 2^24 + 2 is odd already: lost bits do not change it.
      expect(dot(large!, [2, 1], one!, nothing!)).toBe(2 ** 24 + 2);
      expect(dot([2 ** -130, 2 ** 10])).toBe(0);
      expect(dot([2 ** -70, 2 ** -70])).toBe(0);
      expect(dot([2 ** 64, 2 ** 64])).toBe(Infinity);
      expect(dot([2 ** 64, 2 ** 64], [-(2 ** 64), 2 ** 64])).toBeNaN();
    },
  );
});

it('a base packed for one instruction set is refused by another', () => {
  addon.configure({ instructionSet: instructionSets[0]!, threads: 1 });
  const base = addon.packBase(new Float32Array(4), 2, 2, 'bfloat16');
  addon.configure({ instructionSet: 'amx-model', threads: 1 });
  expect(() =>
    addon.linearForward(new Float32Array(2), null, new Float32Array(2), { base, adapter: null }, 1),
  ).toThrow('base was packed for another instruction set');
});

it('the measured peak is that of a CPU, not of a stopped clock', () => {
  addon.configure({ instructionSet: instructionSets[0]!, threads: 1 });
  for (const precision of ['float32', 'bfloat16', 'int8'] as const) {
    expect(addon.measurePeak(precision, 5)).toBeGreaterThan(0.01); // also on an emulated processor
    expect(addon.measurePeak(precision, 5)).toBeLessThan(1e6);
  }
});
