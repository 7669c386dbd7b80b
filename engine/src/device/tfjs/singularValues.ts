import { rightAngleRotation, rotate } from '../planeRotation.js';

/**
 * Singular values of matrix[rows, columns], largest first, min(rows, columns) of them, by one-sided Jacobi rotations in float64. Slow and
 * simple: the native backend has its own implementation, which is checked against this one.
 */
export function singularValues(matrix: Float32Array, rows: number, columns: number): Float64Array {
  // Rotating the vectors of the smaller side needs the fewest pairs; each vector is contiguous.
  const count = Math.min(rows, columns);
  const length = Math.max(rows, columns);
  const vectors = Array.from({ length: count }, (_, i) =>
    Float64Array.from({ length }, (_, k) =>
      rows <= columns ? matrix[i * columns + k]! : matrix[k * columns + i]!,
    ),
  );

  for (let sweep = 0; sweep < sweepsMax; sweep++) {
    let rotated = false;
    for (let i = 0; i < count - 1; i++) {
      for (let j = i + 1; j < count; j++) rotated = orthogonalize(vectors[i]!, vectors[j]!) || rotated;
    }
    if (!rotated) break;
  }
  return Float64Array.from(vectors, (vector) => Math.sqrt(dot(vector, vector)))
    .sort()
    .reverse();
}

/** Convergence is quadratic: real matrices take 6 to 10 sweeps. */
const sweepsMax = 40;

/** Rotates u and v in their plane until they are orthogonal; false if they already are. */
function orthogonalize(u: Float64Array, v: Float64Array): boolean {
  const uu = dot(u, u);
  const vv = dot(v, v);
  const uv = dot(u, v);
  const rotation = rightAngleRotation(uu, vv, uv, 1e-15);
  if (rotation === null) return false;
  rotate(u, v, rotation);
  return true;
}

function dot(u: Float64Array, v: Float64Array): number {
  let sum = 0;
  for (let k = 0; k < u.length; k++) sum += u[k]! * v[k]!;
  return sum;
}
