import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from './halfFloats.js';

/**
 * Converts float32 values to a stored type; also returns the largest absolute rounding difference. A finite value that the type cannot
 * represent throws the error of `refuse`, so a narrowing cast never produces an infinity.
 */
export function narrow(
  values: Float32Array,
  dtype: 'F32' | 'F16' | 'BF16',
  refuse: (value: number) => Error,
): { bytes: Uint8Array; errorMax: number } {
  if (dtype === 'F32')
    return { bytes: new Uint8Array(values.buffer, values.byteOffset, values.byteLength), errorMax: 0 };
  const [to, from] = dtype === 'BF16' ? [toBfloat16, fromBfloat16] : [toFloat16, fromFloat16];
  const halves = new Uint16Array(values.length);
  let errorMax = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    const half = to(value);
    const stored = from(half);
    if (!Number.isFinite(stored) && Number.isFinite(value)) throw refuse(value);
    if (Number.isFinite(value)) errorMax = Math.max(errorMax, Math.abs(stored - value));
    halves[i] = half;
  }
  return { bytes: new Uint8Array(halves.buffer), errorMax };
}
