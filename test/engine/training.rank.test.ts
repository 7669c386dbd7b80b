import { describe, expect, it } from 'vitest';
import { loadNativeAddon } from '../../engine/dist/device/cpu/nativeAddon.js';
import { Random } from '../../engine/dist/random.js';
import { chooseLayers, rankFigures } from '../../engine/dist/training/rankTelemetry.js';
import { singularValues } from '../../engine/dist/device/tfjs/singularValues.js';

function randomMatrix(rows: number, columns: number, stream: string): Float32Array {
  const matrix = new Float32Array(rows * columns);
  Random.forStream(3, stream).fillNormal(matrix, 1);
  return matrix;
}

/** Product of random matrices, rounded to float32 like a merge. */
function lowRankMatrix(rows: number, columns: number, rank: number, size: number): Float32Array {
  const [a, b] = [randomMatrix(rows, rank, 'a'), randomMatrix(rank, columns, 'b')];
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    let sum = 0;
    for (let k = 0; k < rank; k++) sum += a[row * rank + k]! * b[k * columns + column]!;
    return size * sum;
  });
}

describe('singular values', () => {
  it('of a diagonal matrix are its entries, in order', () => {
    const matrix = Float32Array.of(0, 3, 0, -7, 0, 0, 0, 0, 0.5);
    expect([...singularValues(matrix, 3, 3)]).toEqual([7, 3, 0.5]);
  });

  it.each([
    [1, 1],
    [1, 9],
    [17, 5],
    [24, 33],
    [64, 64],
  ])('of %i x %i agree with the native ones and with the Frobenius norm', (rows, columns) => {
    const matrix = randomMatrix(rows, columns, `${rows}x${columns}`);
    const plain = singularValues(matrix, rows, columns);
    const native = loadNativeAddon().singularValues(matrix, rows, columns);
    expect(native.length).toBe(Math.min(rows, columns));
    plain.forEach((value, index) => expect(Math.abs(native[index]! - value)).toBeLessThan(1e-9 * plain[0]!));
    const squares = matrix.reduce((sum, value) => sum + value * value, 0);
    expect(plain.reduce((sum, value) => sum + value * value, 0)).toBeCloseTo(squares, 6);
  });

  it.each([
    [20, 30, 3, 1],
    [64, 64, 8, 1e-4],
    [40, 96, 8, 1],
  ])('of a %i x %i product of rank %i have that rank, natively too', (rows, columns, rank, size) => {
    const matrix = lowRankMatrix(rows, columns, rank, size);
    const plain = singularValues(matrix, rows, columns);
    expect(plain[rank]!).toBeLessThan(1e-6 * plain[0]!);
    expect(rankFigures(plain).rankAboveOnePercent).toBe(rank);
    const native = loadNativeAddon().singularValues(matrix, rows, columns);
    // Computed from squared norms, so values below the root of float64's precision are noise.
    plain.forEach((value, index) => expect(Math.abs(native[index]! - value)).toBeLessThan(3e-8 * plain[0]!));
  });

  it('are found next to a large null space, as a change of low rank has one', () => {
    for (const [rows, columns] of [
      [192, 192],
      [100, 100],
      [192, 512],
    ] as const) {
      const values = loadNativeAddon().singularValues(lowRankMatrix(rows, columns, 32, 1e-3), rows, columns);
      expect(rankFigures(values)).toMatchObject({ rankAboveOnePercent: 32 });
    }
  });
});

describe('the rank of a change', () => {
  it('is the number of equal singular values', () => {
    expect(rankFigures(Float64Array.of(2, 2, 2, 2, 0)).effectiveRank).toBeCloseTo(4, 12);
    expect(rankFigures(Float64Array.of(2, 2, 0.02, 0)).rankAboveOnePercent).toBe(2);
  });

  it('is 0 where nothing has changed', () => {
    expect(rankFigures(Float64Array.of(0, 0))).toEqual({ effectiveRank: 0, rankAboveOnePercent: 0 });
  });

  it('is measured on all layers where it is cheap, else on at least one of each kind', () => {
    const layer = (module: 'q_proj' | 'up_proj', index: number) =>
      ({ name: `${index}.${module}`, module, inFeatures: 100, outFeatures: 200 }) as Parameters<
        typeof chooseLayers
      >[0][number];
    const layers = [0, 1, 2, 3, 4].flatMap((index) => [layer('q_proj', index), layer('up_proj', index)]);
    const flopsOfOne = 4 * 200 * 100 ** 2;
    const names = (flopsMax: number) => chooseLayers(layers, flopsMax).map(({ name }) => name);
    expect(chooseLayers(layers)).toEqual(layers);
    expect(names(0)).toEqual(['2.q_proj', '2.up_proj']);
    expect(names(4 * flopsOfOne)).toEqual(['1.q_proj', '1.up_proj', '2.q_proj', '2.up_proj']);
  });
});
