import { logSoftmax, matMul, mul, neg, oneHot, scalar, sum, tensor1d, tidy } from '@tensorflow/tfjs-core';
import type { Scalar, Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

/**
 * scale * sum over rows of the cross-entropy (nats) of x[rows, dim] head[vocabulary, dim]ᵀ at targets[rows]; a target of
 * -1 adds nothing. Natively [rows, vocabulary] is never held: value and gradients are made together, a chunk of rows at
 * a time, so call `headLossSum` where no gradient is wanted.
 */
export function headCrossEntropy(x: Tensor2D, head: Tensor2D, targets: Int32Array, scale: number): Scalar {
  const native = currentNative();
  if (native === null) return plainHeadCrossEntropy(x, head, targets, scale);
  return nativeHeadCrossEntropy(native, x, head, targets, scale);
}

export function plainHeadCrossEntropy(
  x: Tensor2D,
  head: Tensor2D,
  targets: Int32Array,
  scale: number,
): Scalar {
  const logProbabilities = logSoftmax(matMul(x, head, false, true)); // [rows, vocabulary]
  // A row of zeros for a target of -1.
  const chosen = oneHot(tensor1d(targets, 'int32'), head.shape[0], 1, 0, 'float32');
  return mul(neg(sum(mul(logProbabilities, chosen))), scale);
}

/** Sum of the losses in nats, summed in float64 on the native backend. No gradient. */
export function headLossSum(x: Tensor2D, head: Tensor2D, targets: Int32Array): number {
  const native = currentNative();
  if (native === null) return tidy(() => plainHeadCrossEntropy(x, head, targets, 1).dataSync()[0] ?? 0);
  const losses = new Float32Array(targets.length);
  const [vocabulary, dim] = head.shape;
  native.addon.headCrossEntropy(
    losses,
    null,
    null,
    native.array(x),
    native.array(head),
    targets,
    targets.length,
    dim,
    vocabulary,
    1,
    native.precision,
  );
  return sumOf(losses);
}

function nativeHeadCrossEntropy(
  native: NativeBackend,
  x: Tensor2D,
  head: Tensor2D,
  targets: Int32Array,
  scale: number,
): Scalar {
  const [vocabulary, dim] = head.shape;
  return fusedOp<Scalar>(
    native,
    [x, head],
    () => {
      const losses = new Float32Array(targets.length);
      const dx = native.output<Tensor2D>(x.shape);
      const dhead = native.output<Tensor2D>(head.shape);
      native.addon.headCrossEntropy(
        losses,
        dx.values,
        dhead.values,
        native.array(x),
        native.array(head),
        targets,
        targets.length,
        dim,
        vocabulary,
        scale,
        native.precision,
      );
      return { value: scalar(scale * sumOf(losses)), saved: [dx.tensor, dhead.tensor] };
    },
    (dy, saved) => {
      // The scale of the loss is in the gradients already, so a loss that is the end of the graph needs no other pass.
      const upstream = native.array(dy)[0];
      return saved.map((gradient) => (upstream === 1 ? gradient.clone() : mul(gradient, dy)));
    },
  );
}

function sumOf(values: Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}
