import { Random } from '../random.js';

/** Normally distributed numbers, seeded by name. */
export function seeded(length: number, name: string, std = 1): Float32Array {
  const values = new Float32Array(length);
  Random.forStream(7, name).fillNormal(values, std);
  return values;
}
