import { square, sum, tidy, type Tensor } from '@tensorflow/tfjs-core';
import { currentNative } from '../backend/nativeBackend.js';

/** Sum of squares of all tensors; natively in float64, in one pass and in an order that depends only on their sizes. */
export function sumSquares(tensors: readonly Tensor[]): number {
  const native = currentNative();
  if (native === null) return plainSumSquares(tensors);
  return native.addon.sumSquares(tensors.map((tensor) => native.array(tensor)));
}

export function plainSumSquares(tensors: readonly Tensor[]): number {
  return tensors.reduce((total, x) => total + tidy(() => sum(square(x)).dataSync()[0] ?? 0), 0);
}
