import type { Device, DeviceBuffer } from '../device/device.js';
import type { Random } from '../random.js';
import { rightAngleRotation, rotate, type PlaneRotation } from '../device/planeRotation.js';

/** Extra vectors beyond the requested ones: they make the last ones as accurate as the first. */
const oversampling = 8;
/** Each iteration shrinks the part outside of the leading directions by the square of its singular value's ratio. */
const powerIterationCount = 2;
/** A vector that keeps less than this fraction of its length after projection is rounding error of float32 products. */
const independentMin = 1e-6;

/**
 * The leading left singular vectors of a gradient g[in, out], strongest first, as orthonormal columns of a matrix [in, rank]: randomized
 * subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061). Products are in float32; the rest is in float64 and sequential, so
 * bits depend only on the kernels of the products. If the rank of g is lower, random vectors fill the remaining columns.
 */
export async function leadingDirections(
  device: Device,
  g: Float32Array,
  inFeatures: number,
  outFeatures: number,
  rank: number,
  random: Random,
): Promise<Float32Array> {
  const count = Math.min(rank + oversampling, inFeatures, outFeatures);
  const matrix = device.alloc(g.length);
  device.upload(matrix, g);
  const through = (vectors: Float64Array[], transposed: boolean): Promise<Float64Array[]> =>
    products(device, vectors, matrix, [inFeatures, outFeatures], transposed);

  const sketch = Array.from({ length: count }, () => randomVector(outFeatures, random));
  let left = await through(sketch, true);
  for (let iteration = 0; iteration < powerIterationCount; iteration++) {
    const right = orthonormal(await through(orthonormal(left, random), false), random);
    left = await through(right, true);
  }
  // So far only the span mattered, for which one pass is enough; another makes the vectors orthogonal up to rounding.
  left = orthonormal(orthonormal(left, random), random);

  // Within this span the singular vectors are those of gᵀ restricted to it.
  const image = await through(left, false);
  device.release(matrix);
  const rotation = leadingRotation(image.map((one) => Float64Array.from(image, (other) => dot(one, other))));
  const directions = new Float32Array(inFeatures * rank);
  const mixed = new Float64Array(inFeatures);
  for (const [column, weights] of rotation.slice(0, rank).entries()) {
    mixed.fill(0);
    weights.forEach((weight, index) => addScaled(mixed, left[index]!, weight));
    for (let row = 0; row < inFeatures; row++) directions[row * rank + column] = mixed[row]!;
  }
  return directions;
}

/** Each vector times g, or times its transpose. */
async function products(
  device: Device,
  vectors: Float64Array[],
  g: DeviceBuffer,
  shape: [inFeatures: number, outFeatures: number],
  transposed: boolean,
): Promise<Float64Array[]> {
  const count = vectors.length;
  const [depth, width] = transposed ? [shape[1], shape[0]] : shape;
  const rows = new Float32Array(count * depth);
  vectors.forEach((vector, index) => rows.set(vector, index * depth));
  const [left, product] = [device.alloc(rows.length), device.alloc(count * width)];
  device.upload(left, rows);
  device.matmul(product, left, g, {
    m: count,
    n: width,
    k: depth,
    transposeA: false,
    transposeB: transposed,
  });
  const result = (await device.download(product)) as Float32Array;
  device.release(left);
  device.release(product);
  return vectors.map((_, index) => Float64Array.from(result.subarray(index * width, (index + 1) * width)));
}

/** Orthonormalizes vectors in place, up to rounding of one pass of modified Gram-Schmidt. */
function orthonormal(vectors: Float64Array[], random: Random): Float64Array[] {
  vectors.forEach((vector, index) => {
    for (;;) {
      const before = Math.sqrt(dot(vector, vector));
      for (let other = 0; other < index; other++)
        addScaled(vector, vectors[other]!, -dot(vector, vectors[other]!));
      const norm = Math.sqrt(dot(vector, vector));
      if (norm > independentMin * before) {
        for (let i = 0; i < vector.length; i++) vector[i]! /= norm;
        return;
      }
      vector.set(randomVector(vector.length, random));
    }
  });
  return vectors;
}

/** Convergence is quadratic: real matrices take 6 to 10 sweeps. */
const sweepsMax = 40;

/**
 * Eigenvectors of a positive semidefinite matrix, largest eigenvalue first: pairs of rows are rotated until all are orthogonal (one-sided
 * Jacobi).
 */
export function leadingRotation(rows: Float64Array[]): Float64Array[] {
  const rotation = rows.map((_, index) => {
    const unit = new Float64Array(rows.length);
    unit[index] = 1;
    return unit;
  });
  for (let sweep = 0, isDone = false; sweep < sweepsMax && !isDone; sweep++) {
    isDone = true;
    for (let i = 0; i < rows.length - 1; i++) {
      for (let j = i + 1; j < rows.length; j++) {
        const turn = turnBetween(rows[i]!, rows[j]!);
        if (turn === null) continue;
        isDone = false;
        rotate(rows[i]!, rows[j]!, turn);
        rotate(rotation[i]!, rotation[j]!, turn);
      }
    }
  }
  const norms = rows.map((row) => dot(row, row));
  return norms
    .map((norm, index) => ({ norm, index }))
    .sort((one, other) => other.norm - one.norm)
    .map(({ index }) => rotation[index]!);
}

/** The rotation that makes u and v orthogonal; null if they are. */
function turnBetween(u: Float64Array, v: Float64Array): PlaneRotation | null {
  return rightAngleRotation(dot(u, u), dot(v, v), dot(u, v), 1e-14);
}

export function randomVector(length: number, random: Random): Float64Array {
  const values = new Float32Array(length);
  random.fillNormal(values, 1);
  return Float64Array.from(values);
}

export function addScaled(target: Float64Array, source: Float64Array, factor: number): void {
  for (let i = 0; i < target.length; i++) target[i]! += factor * source[i]!;
}

/** In four sums: with a single one each addition would wait for the one before. */
export function dot(u: Float64Array, v: Float64Array): number {
  const whole = u.length - (u.length % 4);
  let [a, b, c, d] = [0, 0, 0, 0];
  for (let k = 0; k < whole; k += 4) {
    a += u[k]! * v[k]!;
    b += u[k + 1]! * v[k + 1]!;
    c += u[k + 2]! * v[k + 2]!;
    d += u[k + 3]! * v[k + 3]!;
  }
  for (let k = whole; k < u.length; k++) a += u[k]! * v[k]!;
  return a + b + (c + d);
}
