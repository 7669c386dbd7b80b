import { afterAll, describe, expect, it } from 'vitest';
import { loadNativeAddon, type PackedBase } from '../../engine/dist/device/cpu/nativeAddon.js';
import { excess, headCrossEntropy, largest, matrix, multiply, seededArray } from './nativeReference.js';

const addon = loadNativeAddon();
const { instructionSets, int8 } = addon.describe();
const testedSets = [...instructionSets, 'amx-model' as const, 'neonBf16-model' as const];
const epsilon = 2 ** -24;

afterAll(() => addon.configure({ instructionSet: instructionSets[0]!, threads: 1 }));

const forward = (base: PackedBase, x: Float32Array, rows: number, out: number) => {
  const y = new Float32Array(rows * out).fill(NaN);
  addon.linearForward(y, null, x, { base, adapter: null }, rows);
  return y;
};
const backward = (base: PackedBase, dy: Float32Array, rows: number, inFeatures: number) => {
  const dx = new Float32Array(rows * inFeatures).fill(NaN);
  addon.linearBackward(dx, null, null, dy, null, null, { base, adapter: null }, rows);
  return dx;
};

/** The integers of each line and its scale, computed in float32 as the kernels do. */
function quantize(
  values: Float32Array,
  lines: number,
  length: number,
  at: (line: number, i: number) => number,
) {
  const integers = new Float32Array(values.length);
  const scales = Array.from({ length: lines }, (_, line) => {
    const most = largest(Array.from({ length }, (_, i) => values[at(line, i)]!));
    const inverse = Math.fround(127 / most);
    for (let i = 0; i < length; i++) {
      const exact = Math.fround(values[at(line, i)]! * inverse);
      const floor = Math.floor(exact);
      const isUp = exact - floor > 0.5 || (exact - floor === 0.5 && floor % 2 !== 0);
      integers[at(line, i)] = isUp ? floor + 1 : floor;
    }
    return Math.fround(most / 127);
  });
  return { integers, scales };
}

/** Integers in [-127, 127] in which every row and column reaches 127: scales are 1, so products are exact. */
function wholeNumbers(rows: number, columns: number, seed: number): Float32Array {
  const values = seededArray(rows * columns, seed, 127).map(Math.round);
  for (let i = 0; i < rows; i++) values[i * columns] = 127;
  for (let j = 0; j < columns; j++) values[j] = -127;
  return values;
}

// Tile edges (6, 16 and 32 rows, 16 to 64 columns), four k per word, and block edges (256, 512 and 1024 of k).
const sizes = [
  [1, 1, 1],
  [3, 5, 17],
  [6, 64, 64],
  [7, 63, 65],
  [33, 257, 31],
  [16, 513, 49],
  [5, 1025, 3],
  [250, 130, 70],
] as const;

describe.each(testedSets)('an int8 base with %s', (instructionSet) => {
  const configure = (threads = 2) => addon.configure({ instructionSet, threads });

  it.each(sizes)('sums integers exactly both ways: rows=%i, in=%i, out=%i', (rows, inFeatures, out) => {
    configure();
    const w = wholeNumbers(inFeatures, out, 1);
    const x = wholeNumbers(rows, inFeatures, 2);
    const dy = wholeNumbers(rows, out, 3);
    const base = addon.packBase(w, inFeatures, out, 'int8');
    const y = multiply(matrix(x, rows, inFeatures), matrix(w, inFeatures, out)).value;
    const dx = multiply(matrix(dy, rows, out), matrix(w, out, inFeatures, true)).value;
    expect(largest([...y, ...dx])).toBeLessThan(2 ** 24);
    expect(Array.from(forward(base, x, rows, out))).toEqual(Array.from(y));
    expect(Array.from(backward(base, dy, rows, inFeatures))).toEqual(Array.from(dx));
  });

  it.each([1, -1])('sums the largest integers exactly over a whole block of k, sign %i', (sign) => {
    configure();
    const length = 1024;
    const w = new Float32Array(length).fill(127);
    const base = addon.packBase(w, length, 1, 'int8');
    expect(forward(base, new Float32Array(length).fill(127 * sign), 1, 1)[0]).toBe(sign * length * 127 ** 2);
  });

  it.each(sizes)('scales rows and columns: rows=%i, in=%i, out=%i', (rows, inFeatures, out) => {
    configure();
    // Rows and columns of very different magnitudes.
    const stretch = (values: Float32Array, columns: number) =>
      values.map((value, i) => value * 10 ** ((Math.floor(i / columns) % 5) - (i % 3)));
    const w = stretch(seededArray(inFeatures * out, 4), out);
    const x = stretch(seededArray(rows * inFeatures, 5), inFeatures);
    const dy = stretch(seededArray(rows * out, 6), out);
    const base = addon.packBase(w, inFeatures, out, 'int8');

    const check = (actual: Float32Array, left: Float32Array, length: number, columns: number) => {
      const isForward = columns === out;
      const rowwise = quantize(left, rows, length, (row, i) => row * length + i);
      const columnwise = quantize(w, columns, length, (column, i) =>
        isForward ? i * out + column : column * out + i,
      );
      const { value } = multiply(
        matrix(rowwise.integers, rows, length),
        matrix(columnwise.integers, length, columns, !isForward),
      );
      const scale = (i: number) => rowwise.scales[Math.floor(i / columns)]! * columnwise.scales[i % columns]!;
      // Per block of k, which has at least 256, three roundings of scaling and one of adding.
      const blocks = Math.ceil(length / 256);
      const most = 127 ** 2 * length;
      const tolerance = (i: number) => 4 * blocks * epsilon * scale(i) * most;
      expect(
        excess(
          actual,
          value.map((sum, i) => sum * scale(i)),
          tolerance,
        ),
      ).toBeLessThanOrEqual(0);
    };
    check(forward(base, x, rows, out), x, inFeatures, out);
    // The two directions differ in the number of columns.
    if (inFeatures !== out) check(backward(base, dy, rows, inFeatures), dy, out, inFeatures);
  });

  it('gives the same bits with one thread and two', () => {
    const [rows, inFeatures, out] = [250, 600, 150];
    const [x, w] = [seededArray(rows * inFeatures, 7), seededArray(inFeatures * out, 8)];
    const run = (threads: number) => {
      configure(threads);
      return forward(addon.packBase(w, inFeatures, out, 'int8'), x, rows, out);
    };
    expect(run(2)).toEqual(run(1));
  });

  it.each([NaN, Infinity, -Infinity])('makes the results of a row with %d NaN, and no others', (value) => {
    configure();
    const [rows, inFeatures, out] = [8, 70, 40];
    const x = seededArray(rows * inFeatures, 9);
    const base = addon.packBase(seededArray(inFeatures * out, 10), inFeatures, out, 'int8');
    const before = forward(base, x, rows, out);
    x[3 * inFeatures + 69] = value;
    const after = forward(base, x, rows, out);
    after.forEach((result, i) => expect(result).toBe(Math.floor(i / out) === 3 ? NaN : before[i]));
  });

  it.each([NaN, Infinity])('makes the results of a column of weights with %d NaN, and no others', (value) => {
    configure();
    const [rows, inFeatures, out] = [3, 20, 35];
    const w = seededArray(inFeatures * out, 11);
    w[7 * out + 18] = value;
    const base = addon.packBase(w, inFeatures, out, 'int8');
    const y = forward(base, seededArray(rows * inFeatures, 12), rows, out);
    y.forEach((result, i) => expect(Number.isNaN(result)).toBe(i % out === 18));
    const dx = backward(base, seededArray(rows * out, 13), rows, inFeatures);
    dx.forEach((result, i) => expect(Number.isNaN(result)).toBe(i % inFeatures === 7));
  });

  it('takes rows and columns of zeros, and of numbers too small to scale, as zero', () => {
    configure();
    const base = addon.packBase(Float32Array.of(0, 2, 1e-40, 0, -1, 1e-41), 2, 3, 'int8');
    const x = Float32Array.of(0, 0, 1e-40, -1e-40, 1, 1);
    expect([...forward(base, x, 3, 3)].map(Math.abs)).toEqual([0, 0, 0, 0, 0, 0, 0, expect.closeTo(1, 1), 0]);
  });

  it('carries an adapter beside it in bfloat16', () => {
    configure();
    const [rows, inFeatures, out, rank, scale] = [131, 70, 129, 8, 0.5];
    const x = seededArray(rows * inFeatures, 14);
    const dy = seededArray(rows * out, 15);
    const [a, b] = [seededArray(inFeatures * rank, 16), seededArray(rank * out, 17)];
    const base = addon.packBase(seededArray(inFeatures * out, 18), inFeatures, out, 'int8');
    const zeroBase = addon.packBase(new Float32Array(inFeatures * out), inFeatures, out, 'bfloat16');
    const run = (panels: PackedBase) => {
      const [y, xa, dx] = [rows * out, rows * rank, rows * inFeatures].map((n) => new Float32Array(n));
      const [da, db] = [new Float32Array(a.length), new Float32Array(b.length)];
      addon.linearForward(y!, xa!, x, { base: panels, adapter: { rank, a, b, scale } }, rows);
      addon.linearBackward(dx!, da, db, dy, x, xa!, { base: panels, adapter: { rank, a, b, scale } }, rows);
      return { y: y!, xa: xa!, dx: dx!, da, db };
    };
    const both = run(base);
    const adapter = run(zeroBase);
    for (const name of ['xa', 'da', 'db'] as const) expect(both[name], name).toEqual(adapter[name]);
    const sum = (p: Float32Array, q: Float32Array) => p.map((value, i) => value + q[i]!);
    for (const [actual, expected] of [
      [both.y, sum(forward(base, x, rows, out), adapter.y)],
      [both.dx, sum(backward(base, dy, rows, inFeatures), adapter.dx)],
    ] as const) {
      expect(excess(actual, expected, () => 4 * rank * epsilon * largest(expected))).toBeLessThanOrEqual(0);
    }
  });

  it('takes a little more than a quarter of the memory of a float32 base', () => {
    configure();
    const [inFeatures, out] = [1376, 512];
    const bytes = addon.packedBaseBytes(
      addon.packBase(new Float32Array(inFeatures * out), inFeatures, out, 'int8'),
    );
    expect(bytes).toBeGreaterThan(2 * inFeatures * out);
    expect(bytes).toBeLessThan(2.2 * inFeatures * out);
  });
});

it('sets that sum the same blocks of k and fuse the same additions give the same bits', () => {
  const [rows, inFeatures, out] = [7, 1500, 37]; // more than one block of 1024
  const [w, x] = [seededArray(inFeatures * out, 5), seededArray(rows * inFeatures, 6)];
  const bits = (instructionSet: (typeof testedSets)[number]) => {
    addon.configure({ instructionSet, threads: 1 });
    return forward(addon.packBase(w, inFeatures, out, 'int8'), x, rows, out);
  };
  const modeled = bits('neonBf16-model');
  const alike = instructionSets.filter(
    (set) => ['neonBf16', 'neonDot'].includes(set) || (int8 === 'vnni' && set.startsWith('avx512')),
  );
  for (const set of alike) expect(bits(set), set).toEqual(modeled);
});

it('reports what multiplies int8', () => {
  const expected = {
    ...{ amx: ['amx'], avx512bf16: ['vnni', 'avx2'], avx512: ['vnni', 'avx2'] },
    ...{ neonBf16: ['i8mm', 'dot'], neonDot: ['dot'] },
  };
  const best = instructionSets[0]!;
  expect(best in expected ? expected[best as keyof typeof expected] : [best]).toContain(int8);
});

describe.each(testedSets)('a head in int8 with %s', (instructionSet) => {
  // One block of k and several, one slab of the vocabulary and several; with many tokens more than one chunk of rows.
  const headSizes = [
    [1, 2, 3],
    [7, 65, 35],
    [20, 33, 1500],
    [7, 1030, 35],
    ...(instructionSet === testedSets[0] ? [[270, 4, 32_000] as const] : []),
  ] as const;
  const cases = headSizes.flatMap((size) =>
    (['float32', 'bfloat16'] as const).map((precision) => [...size, precision] as const),
  );
  it.each(cases)('is near the head of the quantized operands: %i rows of %i, %i tokens, %s', (...of) => {
    const [rows, dim, vocabulary, precision] = of;
    const [x, head] = [seededArray(rows * dim, 31), seededArray(vocabulary * dim, 32, 3 / Math.sqrt(dim))];
    const targets = Int32Array.from({ length: rows }, (_, i) => (i % 5 === 3 ? -1 : (i * 7) % vocabulary));
    const shape = { rows, hidden: dim, vocabulary, gradientScale: 1, inInt8: true };
    const run = (threads: number) => {
      const outputs = [rows, rows * dim, vocabulary * dim].map((length) =>
        new Float32Array(length).fill(NaN),
      ) as [Float32Array, Float32Array, Float32Array];
      addon.configure({ instructionSet, threads });
      addon.headCrossEntropy(...outputs, x, head, targets, shape, precision);
      return outputs;
    };
    const [losses, dx, dhead] = run(2);
    expect(run(1)).toEqual([losses, dx, dhead]);

    const dequantized = (values: Float32Array, lines: number) => {
      const { integers, scales } = quantize(values, lines, dim, (line, i) => line * dim + i);
      return integers.map((value, i) => value * scales[Math.floor(i / dim)]!);
    };
    const expected = headCrossEntropy(
      ...[dequantized(x, rows), dequantized(head, vocabulary), targets, rows, dim, vocabulary, 1],
    );
    expect(excess(losses, expected.losses, () => 1e-5 * dim)).toBeLessThanOrEqual(0);
    expect(cosine(dhead, expected.dhead)).toBeGreaterThan(0.9999);
    // The target is added in float32 and far larger than the product of int8, which is compared without it.
    const product = (values: ArrayLike<number>, table: Float32Array) =>
      Float64Array.from(values, (value, at) => {
        const target = targets[Math.floor(at / dim)]!;
        return target < 0 ? value : value + table[target * dim + (at % dim)]!;
      });
    const [actual, wanted] = [product(dx, head), product(expected.dx, dequantized(head, vocabulary))];
    expect(cosine(actual, wanted)).toBeGreaterThan(precision === 'float32' ? 0.999 : 0.998);
    for (const [row, target] of targets.entries())
      if (target < 0) expect(largest(dx.subarray(row * dim, (row + 1) * dim))).toBe(0);
  });

  it('gives a NaN loss for a NaN in the head', () => {
    const [x, head] = [seededArray(4, 33), seededArray(70, 34)];
    head[31] = NaN;
    const losses = new Float32Array(2);
    addon.configure({ instructionSet, threads: 1 });
    const shape = { rows: 2, hidden: 2, vocabulary: 35, gradientScale: 1, inInt8: true };
    addon.headCrossEntropy(
      losses,
      new Float32Array(4),
      new Float32Array(70),
      x,
      head,
      Int32Array.of(3, -1),
      shape,
      'float32',
    );
    expect([...losses]).toEqual([NaN, 0]);
  });
});

function cosine(a: Float32Array | Float64Array, b: Float64Array): number {
  let [dot, ofA, ofB] = [0, 0, 0];
  for (const [i, value] of a.entries()) {
    dot += value * b[i]!;
    ofA += value * value;
    ofB += b[i]! * b[i]!;
  }
  return dot / Math.sqrt(ofA * ofB);
}
