import { describe, expect, it } from 'vitest';
import {
  epsilon,
  excess,
  matrix,
  multiply,
  roundToBfloat16,
  seededArray,
  transposed,
} from '../engine/nativeReference.js';
import { onEverySchedule, type Bench } from './everySchedule.js';

/** X Xᵀ for each of several stacked matrices [m, k]. */
function squaresOf(x: Float32Array, count: number, m: number, k: number): Float64Array[] {
  return Array.from({ length: count }, (_, i) => {
    const rows = matrix(x.subarray(i * m * k, (i + 1) * m * k), m, k);
    return multiply(rows, transposed(rows)).value;
  });
}

const within = (k: number) => () => 4 * k * epsilon * k;

describe('squares of matrices that lie behind each other', () => {
  it.each([
    [1, 3, 9],
    [2, 70, 33],
    [3, 130, 20],
  ])('%d of %d x %d in float32 agree with float64, and are symmetric', (count, m, k) => {
    const x = seededArray(count * m * k, 3);
    const [stride, ends] = [m + 5, k + 2];
    const found = onEverySchedule((bench) => {
      const [c, from] = [bench.empty(4 * count * m * stride), rowsApart(bench, x, count * m, k, ends)];
      const across = Math.ceil(m / 64);
      const parameters = { c, x: from, m, k, c_stride: stride, x_stride: ends };
      bench.launch('product_float', 'squares_float', [across, across, count], parameters);
      return Array.from({ length: count * m }, (_, row) => bench.readFloats(c + 4 * row * stride, m));
    });
    check(found, squaresOf(x, count, m, k), m, k);
  });

  it.each([
    [1, 5, 16],
    [2, 130, 40],
  ])('%d of %d x %d in bfloat16 agree with float64, and are symmetric', (count, m, k) => {
    const x = roundToBfloat16(seededArray(count * m * k, 4));
    const found = onEverySchedule((bench) => {
      const c = bench.empty(4 * count * m * m);
      const across = Math.ceil(m / 128);
      bench.launch(
        'product',
        'product_squares',
        [across, across, count],
        {
          ...{ c_bf16: 0, c_float: c, a: bench.bf16(x), m, n: m, k, a_stride: k, b_stride: k, c_stride: m },
          ...{ slice_k: k, slice_elements: m * m, addend: 0, addend_stride: 0, bias: 0, factor: 0 },
          ...{ b: bench.bf16(x), scale: 1, adds: 0 },
        },
        { dynamicSharedBytes: 3 * 2 * (128 * 40 + 128 * 40) },
      );
      return Array.from({ length: count * m }, (_, row) => bench.readFloats(c + 4 * row * m, m));
    });
    check(found, squaresOf(x, count, m, k), m, k);
  });

  function check(rows: Float32Array[], wanted: Float64Array[], m: number, k: number): void {
    wanted.forEach((square, i) => {
      const of = rows.slice(i * m, (i + 1) * m);
      of.forEach((row, at) =>
        expect(excess(row, square.subarray(at * m, (at + 1) * m), within(k))).toBeLessThanOrEqual(0),
      );
      of.forEach((row, at) => row.forEach((value, column) => expect(of[column]![at]).toBe(value)));
    });
  }
});

describe('the inverse of a factor of Cholesky', () => {
  it.each([1, 5, 40, 130])('whitens a damped Gram matrix of rank %d', (rank) => {
    const factor = seededArray(rank * (rank + 3), 5);
    const gram = squaresOf(factor, 1, rank, rank + 3)[0]!;
    const damping = 0.01;
    const inverse = onEverySchedule((bench) => {
      const to = bench.empty(4 * rank * rank);
      bench.launch('muon', 'inverse_factor', [1], {
        ...{ inverse: to, gram: bench.floats(Float32Array.from(gram)), work: bench.empty(16 * rank * rank) },
        ...{ rank, stride: rank, damping },
      });
      return bench.readFloats(to, rank * rank);
    });
    const damped = Float32Array.from(gram, (value, i) => value + (i % (rank + 1) === 0 ? damping : 0));
    const l = matrix(inverse, rank, rank);
    const left = multiply(l, matrix(damped, rank, rank)).value;
    const whitened = multiply(matrix(left, rank, rank), transposed(l)).value;
    whitened.forEach((value, i) => expect(value).toBeCloseTo(i % (rank + 1) === 0 ? 1 : 0, 2));
  });
});

function rowsApart(bench: Bench, x: Float32Array, rows: number, columns: number, stride: number): number {
  const apart = new Float32Array(rows * stride).fill(NaN);
  for (let row = 0; row < rows; row++)
    apart.set(x.subarray(row * columns, (row + 1) * columns), row * stride);
  return bench.floats(apart);
}
