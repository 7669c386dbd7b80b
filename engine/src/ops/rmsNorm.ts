import { add, mul, rsqrt, square, sum, type Tensor1D, type Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

/** x[rows, dim] / sqrt(mean(x²) + epsilon) * gain[dim]. */
export function rmsNorm(x: Tensor2D, gain: Tensor1D, epsilon: number): Tensor2D {
  const native = currentNative();
  return native === null ? plainRmsNorm(x, gain, epsilon) : nativeRmsNorm(native, x, gain, epsilon);
}

export function plainRmsNorm(x: Tensor2D, gain: Tensor1D, epsilon: number): Tensor2D {
  const meanSquare = mul(sum(square(x), 1, true), 1 / x.shape[1]); // [rows, 1]
  return mul(mul(x, rsqrt(add(meanSquare, epsilon))), gain);
}

function nativeRmsNorm(native: NativeBackend, x: Tensor2D, gain: Tensor1D, epsilon: number): Tensor2D {
  const [rows, dim] = x.shape;
  return fusedOp<Tensor2D>(
    native,
    [x, gain],
    () => {
      const y = native.output<Tensor2D>([rows, dim]);
      const rstd = native.output<Tensor1D>([rows]);
      native.addon.rmsNormForward(
        y.values,
        rstd.values,
        native.array(x),
        native.array(gain),
        rows,
        dim,
        epsilon,
      );
      return { value: y.tensor, saved: [x, gain, rstd.tensor] };
    },
    (dy, [x, gain, rstd]) => {
      const dx = native.output<Tensor2D>([rows, dim]);
      const dgain = native.output<Tensor1D>([dim]);
      native.addon.rmsNormBackward(
        dx.values,
        dgain.values,
        native.array(dy),
        native.array(x!),
        native.array(gain!),
        native.array(rstd!),
        rows,
        dim,
      );
      return [dx.tensor, dgain.tensor];
    },
  );
}
