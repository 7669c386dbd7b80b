import { describe, expect, it } from 'vitest';
import { openDevice } from '@relora/engine';
import { leadingDirections } from '../../engine/dist/training/leadingDirections.js';
import { singularValues } from '../../engine/dist/device/tfjs/singularValues.js';
import { Random } from '../../engine/dist/random.js';

/** [rows, columns] with orthonormal columns. */
function orthonormalColumns(rows: number, columns: number, random: Random): Float64Array[] {
  const vectors: Float64Array[] = [];
  for (let column = 0; column < columns; column++) {
    const values = new Float32Array(rows);
    random.fillNormal(values, 1);
    const vector = Float64Array.from(values);
    for (let pass = 0; pass < 2; pass++)
      for (const other of vectors) {
        const along = dot(vector, other);
        vector.forEach((_, i) => (vector[i]! -= along * other[i]!));
      }
    const norm = Math.sqrt(dot(vector, vector));
    vectors.push(vector.map((value) => value / norm));
  }
  return vectors;
}

const dot = (u: Float64Array, v: Float64Array): number => u.reduce((sum, value, i) => sum + value * v[i]!, 0);

/** U diag(values) Vᵀ in float32, so that its left singular vectors are known. */
function matrixOf(inFeatures: number, outFeatures: number, values: number[]) {
  const random = Random.forStream(3, 'matrix', inFeatures, outFeatures);
  const left = orthonormalColumns(inFeatures, values.length, random);
  const right = orthonormalColumns(outFeatures, values.length, random);
  const matrix = new Float32Array(inFeatures * outFeatures);
  for (let i = 0; i < inFeatures; i++)
    for (let j = 0; j < outFeatures; j++)
      matrix[i * outFeatures + j] = values.reduce(
        (sum, value, k) => sum + value * left[k]![i]! * right[k]![j]!,
        0,
      );
  return { matrix, left };
}

const column = (a: Float32Array, rank: number, k: number): Float64Array =>
  Float64Array.from({ length: a.length / rank }, (_, i) => a[i * rank + k]!);

const random = () => Random.forStream(1, 'directions', 'layer', 0);

describe.each(['native', 'reference'] as const)('the leading directions of a gradient, %s', (name) => {
  it.each([
    [40, 64, 6],
    [64, 40, 6],
    [33, 17, 17],
    [5, 90, 3],
  ])('of %i x %i are its singular vectors, the strongest first: rank %i', async (rows, columns, rank) => {
    const device = await openDevice({ device: name, precision: 'float32', threads: 2 });
    const values = Array.from({ length: Math.min(rows, columns) }, (_, k) => 0.8 ** k);
    const { matrix, left } = matrixOf(rows, columns, values);
    const a = await leadingDirections(device, matrix, rows, columns, rank, random());
    for (let k = 0; k < rank; k++) {
      const found = column(a, rank, k);
      expect(dot(found, found)).toBeCloseTo(1, 5);
      // Besides the iteration's error, float32 products rotate a vector by rounding over the gap to the next singular value.
      const sine = Math.sqrt(Math.max(0, 1 - dot(found, left[k]!) ** 2));
      expect(sine).toBeLessThan(0.02);
      for (let other = 0; other < k; other++)
        expect(Math.abs(dot(found, column(a, rank, other)))).toBeLessThan(1e-5);
    }
  });

  it('hold nearly as much of a slowly falling spectrum as any vectors could', async () => {
    const device = await openDevice({ device: name, precision: 'float32', threads: 2 });
    const values = Array.from({ length: 48 }, (_, k) => 1 / (1 + k / 8));
    const { matrix } = matrixOf(64, 48, values);
    const rank = 8;
    const a = await leadingDirections(device, matrix, 64, 48, rank, random());
    const image = new Float32Array(rank * 48);
    for (let k = 0; k < rank; k++)
      for (let j = 0; j < 48; j++)
        for (let i = 0; i < 64; i++) image[k * 48 + j]! += a[i * rank + k]! * matrix[i * 48 + j]!;
    const held = singularValues(image, rank, 48).reduce((sum, value) => sum + value ** 2, 0);
    const best = values.slice(0, rank).reduce((sum, value) => sum + value ** 2, 0);
    expect(held / best).toBeGreaterThan(0.98);
    expect(held / best).toBeLessThan(1 + 1e-5);
  });

  it.each([0, 2])('are filled up where the gradient has rank %i only', async (count) => {
    const device = await openDevice({ device: name, precision: 'float32', threads: 2 });
    const { matrix, left } = matrixOf(
      20,
      30,
      Array.from({ length: count }, (_, k) => 4 - k),
    );
    const a = await leadingDirections(device, matrix, 20, 30, 5, random());
    for (let k = 0; k < 5; k++)
      for (let other = 0; other <= k; other++)
        expect(dot(column(a, 5, k), column(a, 5, other))).toBeCloseTo(k === other ? 1 : 0, 5);
    for (let k = 0; k < count; k++) expect(Math.abs(dot(column(a, 5, k), left[k]!))).toBeCloseTo(1, 5);
  });
});
