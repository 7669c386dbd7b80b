import { matMul, type Tensor2D } from '@tensorflow/tfjs-core';
import type { ProductPrecision } from '../backend/nativeAddon.js';
import { currentNative } from '../backend/nativeBackend.js';

/** x[rows, dim] head[vocabulary, dim]ᵀ -> [rows, vocabulary], whole, without a gradient: for probes and for writing text. */
export function headLogits(x: Tensor2D, head: Tensor2D, precision?: ProductPrecision): Tensor2D {
  const native = currentNative();
  if (native === null) return matMul(x, head, false, true);
  const [rows, dim] = x.shape;
  const vocabulary = head.shape[0];
  const logits = native.output<Tensor2D>([rows, vocabulary]);
  native.addon.matmul(
    logits.values,
    native.array(x),
    native.array(head),
    1,
    rows,
    vocabulary,
    dim,
    false,
    true,
    precision ?? native.precision,
  );
  return logits.tensor;
}
