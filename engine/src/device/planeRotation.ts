/** A rotation in the plane of two vectors. */
export interface PlaneRotation {
  cosine: number;
  sine: number;
}

/**
 * Jacobi's rotation that puts u and v at a right angle, from their dot products; null where they are at one within `tolerance`,
 * a cosine.
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
