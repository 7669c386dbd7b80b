import { add, type Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

/** x + y of one shape: the residual connection. An op of its own so that its backward pass copies nothing. */
export function residual(x: Tensor2D, y: Tensor2D): Tensor2D {
  const native = currentNative();
  return native === null ? plainResidual(x, y) : nativeResidual(native, x, y);
}

export function plainResidual(x: Tensor2D, y: Tensor2D): Tensor2D {
  return add(x, y);
}

function nativeResidual(native: NativeBackend, x: Tensor2D, y: Tensor2D): Tensor2D {
  return fusedOp<Tensor2D>(
    native,
    [x, y],
    () => {
      const sum = native.output<Tensor2D>(x.shape);
      sum.values.set(native.array(x));
      native.addon.addInPlace(sum.values, native.array(y));
      return { value: sum.tensor, saved: [] };
    },
    // Both are the same data, counted by reference.
    (dy) => [dy.clone(), dy.clone()],
  );
}
