import { describe, expect, it } from 'vitest';
import {
  epsilon,
  excess,
  matrix,
  multiply,
  roundToBfloat16,
  seededArray,
} from '../engine/nativeReference.js';
import { onEverySchedule, unitOf } from './everySchedule.js';

const strideOf = (columns: number) => Math.ceil(columns / 8) * 8;
const stageBytes = {
  product: [10240, 8704],
  product_right_transposed: [10240, 10240],
  product_left_transposed: [8704, 8704],
};
const unit = unitOf('bf16');

interface Case {
  kernel: keyof typeof stageBytes;
  m: number;
  n: number;
  k: number;
}

/** Sizes of one, odd sizes, and tile sizes plus or minus one. */
const cases: Case[] = [
  { kernel: 'product', m: 1, n: 1, k: 1 },
  { kernel: 'product', m: 129, n: 17, k: 33 },
  { kernel: 'product', m: 3, n: 127, k: 96 },
  { kernel: 'product_right_transposed', m: 17, n: 129, k: 31 },
  { kernel: 'product_right_transposed', m: 128, n: 3, k: 65 },
  { kernel: 'product_left_transposed', m: 127, n: 9, k: 3 },
  { kernel: 'product_left_transposed', m: 17, n: 130, k: 100 },
];

describe('products in bfloat16', () => {
  it.each(cases)('$kernel of $m x $n over $k agrees with float64', ({ kernel, m, n, k }) => {
    const isLeft = kernel === 'product_left_transposed';
    const isRight = kernel === 'product_right_transposed';
    const a = roundToBfloat16(seededArray(m * k, 1));
    const b = roundToBfloat16(seededArray(k * n, 2));
    const addend = seededArray(m * n, 3);
    const bias = seededArray(n, 11);
    const before = seededArray(m * n, 4);
    const scale = 0.75;
    const strides = { a: strideOf(isLeft ? m : k), b: strideOf(isRight ? k : n), c: strideOf(n) };
    const results = onEverySchedule((bench) => {
      const shape = {
        a: isLeft ? bench.activations(a, k, m, strides.a) : bench.activations(a, m, k, strides.a),
        b: isRight ? bench.activations(b, n, k, strides.b) : bench.activations(b, k, n, strides.b),
        ...{ m, n, k, a_stride: strides.a, b_stride: strides.b, scale },
      };
      const launch = (slices: number, parameters: Record<string, number>) => {
        const sliceK = Math.ceil(Math.ceil(k / slices) / 32) * 32;
        const grid = [Math.ceil(n / 128), Math.ceil(m / 128), Math.ceil(k / sliceK)] as const;
        const [left, right] = stageBytes[kernel];
        bench.launch(
          'product',
          kernel,
          grid,
          {
            ...{
              c_bf16: 0,
              c_float: 0,
              addend: 0,
              addend_stride: 0,
              bias: 0,
              factor: 0,
              slice_elements: 0,
              adds: 0,
            },
            ...shape,
            slice_k: sliceK,
            ...parameters,
          },
          { dynamicSharedBytes: 3 * (left! + right!) },
        );
        return grid[2];
      };
      const rounded = bench.emptyActivations(m, strides.c);
      launch(1, {
        c_bf16: rounded,
        ...{ addend: bench.floats(addend), addend_stride: n, bias: bench.floats(bias) },
        c_stride: strides.c,
        factor: bench.floats(Float32Array.of(2)),
      });
      const added = bench.floats(before);
      launch(1, { c_float: added, c_stride: n, adds: 1 });
      const partial = bench.empty(2 * m * n * 4);
      const slices = launch(2, { c_float: partial, c_stride: n, slice_elements: m * n });
      const sliced = bench.empty(m * n * 4);
      bench.launch('sums', 'sum_slices', [Math.ceil((m * n) / 32)], {
        to: sliced,
        partial,
        slices,
        columns: m * n,
        adds: 0,
      });
      return {
        rounded: bench.readActivations(rounded, m, n, strides.c),
        added: bench.readFloats(added, m * n),
        sliced: bench.readFloats(sliced, m * n),
      };
    });
    const { value, magnitude } = multiply(matrix(a, m, k, isLeft), matrix(b, k, n, isRight));
    const error = (i: number) => (k + 4) * epsilon * (magnitude[i]! + 1);
    const product = value.map((v) => scale * v);
    expect(excess(results.sliced, product, error)).toBeLessThanOrEqual(0);
    const sum = product.map((v, i) => v + before[i]!);
    expect(excess(results.added, sum, error)).toBeLessThanOrEqual(0);
    const residual = product.map((v, i) => 2 * v + addend[i]! + bias[i % n]!);
    expect(
      excess(results.rounded, residual, (i) => 2 * error(i) + unit * Math.abs(residual[i]!)),
    ).toBeLessThanOrEqual(0);
  });
});

describe('products in float32', () => {
  it.each([
    [1, 1, 1, false, false],
    [17, 65, 3, false, false],
    [65, 17, 33, true, false],
    [3, 64, 17, false, true],
    [63, 3, 16, true, true],
  ])('of %d x %d over %d (transposed: %s, %s) agree with float64', (m, n, k, transposeA, transposeB) => {
    const a = seededArray(m * k, 5);
    const b = seededArray(k * n, 6);
    const addend = seededArray(m * n, 7);
    const result = onEverySchedule((bench) => {
      const c = bench.empty(m * n * 4);
      bench.launch('product_float', 'product_float', [Math.ceil(n / 64), Math.ceil(m / 64)], {
        c,
        a: bench.floats(a),
        b: bench.floats(b),
        ...{ addend: bench.floats(addend), addend_stride: n, bias: 0, factor: 0, adds: 0 },
        ...{ m, n, k, c_stride: n, scale: -1.5 },
        ...(transposeA ? { a_row: 1, a_column: m } : { a_row: k, a_column: 1 }),
        ...(transposeB ? { b_row: 1, b_column: k } : { b_row: n, b_column: 1 }),
      });
      return bench.readFloats(c, m * n);
    });
    const { value, magnitude } = multiply(matrix(a, m, k, transposeA), matrix(b, k, n, transposeB));
    const expected = value.map((v, i) => -1.5 * v + addend[i]!);
    expect(excess(result, expected, (i) => 2 * (k + 4) * epsilon * (magnitude[i]! + 1))).toBeLessThanOrEqual(
      0,
    );
  });
});

describe('the merge of an adapter', () => {
  const merge = (
    inFeatures: number,
    rank: number,
    out: number,
    into: 'weight' | 'other' | 'nothing',
    w: Float32Array,
  ) => {
    const a = seededArray(inFeatures * rank, 8);
    const b = seededArray(rank * out, 9, 1e-3);
    const blocks = Math.ceil(inFeatures / 64) * Math.ceil(out / 64);
    const result = onEverySchedule((bench) => {
      const weight = bench.floats(w);
      const merged = into === 'weight' ? weight : into === 'other' ? bench.empty(w.byteLength) : 0;
      const [squares, infinite] = [bench.empty(blocks * 8), bench.empty(blocks * 4)];
      bench.launch('product_float', 'merge_adapter', [Math.ceil(out / 64), Math.ceil(inFeatures / 64)], {
        ...{ merged, w: weight, a: bench.floats(a), b: bench.floats(b), squares, infinite },
        ...{ in: inFeatures, rank, out, scale: 2 },
      });
      return {
        merged: into === 'nothing' ? null : bench.readFloats(merged, w.length),
        squares: bench.readDoubles(squares, blocks).reduce((total, v) => total + v, 0),
        infinite: new Int32Array(bench.readBytes(infinite, blocks * 4).buffer).reduce(
          (total, v) => total + v,
          0,
        ),
      };
    });
    const delta = multiply(matrix(a, inFeatures, rank), matrix(b, rank, out)).value.map((v) => 2 * v);
    return { ...result, delta };
  };

  it.each(['weight', 'other', 'nothing'] as const)('into %s adds the delta once and measures it', (into) => {
    const w = seededArray(65 * 17, 10, 3);
    const { merged, squares, infinite, delta } = merge(65, 3, 17, into, w);
    expect(infinite).toBe(0);
    const norm = delta.reduce((total, v) => total + v * v, 0);
    expect(Math.abs(squares - norm)).toBeLessThanOrEqual(16 * epsilon * norm);
    if (merged !== null)
      expect(
        excess(
          merged,
          delta.map((v, i) => v + w[i]!),
          (i) => epsilon * (Math.abs(w[i]!) + 16 * 6e-3),
        ),
      ).toBeLessThanOrEqual(0);
  });

  it('counts what is not finite', () => {
    const w = seededArray(65 * 17, 10);
    w[7] = Infinity;
    w[700] = NaN;
    expect(merge(65, 3, 17, 'nothing', w).infinite).toBe(2);
  });
});
