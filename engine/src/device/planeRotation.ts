/** A rotation in the plane of two vectors. */
export interface PlaneRotation {
  cosine: number;
  sine: number;
}

/**
 * The Jacobi rotation that makes u and v orthogonal, from their dot products; null if the cosine of their angle is within `tolerance`.
 */
export function rightAngleRotation(
  uu: number,
  vv: number,
  uv: number,
  tolerance: number,
): PlaneRotation | null {
  if (Math.abs(uv) <= tolerance * Math.sqrt(uu * vv)) return null;
  const zeta = (vv - uu) / (2 * uv);
  const tangent = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
  const cosine = 1 / Math.sqrt(1 + tangent * tangent);
  return { cosine, sine: cosine * tangent };
}

/** Rotates u and v in their plane, in place. */
export function rotate(u: Float64Array, v: Float64Array, { cosine, sine }: PlaneRotation): void {
  for (let k = 0; k < u.length; k++) {
    const a = u[k]!;
    const b = v[k]!;
    u[k] = cosine * a - sine * b;
    v[k] = sine * a + cosine * b;
  }
}
