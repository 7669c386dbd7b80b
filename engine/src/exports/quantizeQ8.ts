import { fromFloat16, toFloat16 } from '../io/halfFloats.js';

/** Values in a block with one scale. */
export const q8BlockValues = 32;

/**
 * ggml's q8_0: for every 32 values a float16 scale d = max|x| / 127, then 32 int8 q = round(x / d); x is stored as d q. The bits are those
 * of ggml's own quantizer: float32 arithmetic, halves rounded away from zero. `errorMax` is the largest |x - d q|. Null if a scale does not
 * fit float16.
 */
export function quantizeQ8(values: Float32Array): { bytes: Uint8Array; errorMax: number } | null {
  const blockCount = values.length / q8BlockValues;
  const bytes = new Uint8Array(blockCount * (2 + q8BlockValues));
  const view = new DataView(bytes.buffer);
  const codes = new Int8Array(bytes.buffer);
  let errorMax = 0;
  for (let block = 0; block < blockCount; block++) {
    const first = block * q8BlockValues;
    let largest = 0;
    for (let i = 0; i < q8BlockValues; i++) largest = Math.max(largest, Math.abs(values[first + i]!));
    const scale = Math.fround(largest / 127);
    const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
    const half = toFloat16(scale);
    const stored = fromFloat16(half);
    if (!Number.isFinite(stored)) return null;
    const start = block * (2 + q8BlockValues);
    view.setUint16(start, half, true);
    for (let i = 0; i < q8BlockValues; i++) {
      const value = values[first + i]!;
      const scaled = Math.fround(value * inverse);
      const code = Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5);
      codes[start + 2 + i] = code;
      errorMax = Math.max(errorMax, Math.abs(value - stored * code));
    }
  }
  return { bytes, errorMax };
}
