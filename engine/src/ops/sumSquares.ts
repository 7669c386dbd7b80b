import { square, sum, tidy, type Tensor } from '@tensorflow/tfjs-core';
import { currentNative } from '../backend/nativeBackend.js';

/** Sum of squares; natively in float64 and in an order that depends only on the length. */
export function sumSquares(x: Tensor): number {
  const native = currentNative();
  return native === null ? plainSumSquares(x) : native.addon.sumSquares(native.array(x));
}

export function plainSumSquares(x: Tensor): number {
  return tidy(() => sum(square(x)).dataSync()[0] ?? 0);
}
