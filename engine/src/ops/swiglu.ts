import { mul, sigmoid, type Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

/** silu(gate) * up, elementwise (Shazeer 2020). */
export function swiglu(gate: Tensor2D, up: Tensor2D): Tensor2D {
  const native = currentNative();
  return native === null ? plainSwiglu(gate, up) : nativeSwiglu(native, gate, up);
}

export function plainSwiglu(gate: Tensor2D, up: Tensor2D): Tensor2D {
  return mul(mul(gate, sigmoid(gate)), up);
}

function nativeSwiglu(native: NativeBackend, gate: Tensor2D, up: Tensor2D): Tensor2D {
  return fusedOp<Tensor2D>(
    native,
    [gate, up],
    () => {
      const h = native.output<Tensor2D>(gate.shape);
      native.addon.swigluForward(h.values, native.array(gate), native.array(up));
      return { value: h.tensor, saved: [gate, up] };
    },
    (dh, [gate, up]) => {
      const dgate = native.output<Tensor2D>(dh.shape);
      const dup = native.output<Tensor2D>(dh.shape);
      native.addon.swigluBackward(
        dgate.values,
        dup.values,
        native.array(dh),
        native.array(gate!),
        native.array(up!),
      );
      return [dgate.tensor, dup.tensor];
    },
  );
}
