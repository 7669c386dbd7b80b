import { matMul, type Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import type { ProductPrecision } from '../backend/nativeAddon.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

/** Trainable dense layer: x[rows, in] w[in, out] -> [rows, out]. `precision` overrides that of the native backend. */
export function linear(x: Tensor2D, w: Tensor2D, precision?: ProductPrecision): Tensor2D {
  const native = currentNative();
  return native === null ? plainLinear(x, w) : nativeLinear(native, x, w, precision ?? native.precision);
}

export function plainLinear(x: Tensor2D, w: Tensor2D): Tensor2D {
  return matMul(x, w);
}

function nativeLinear(
  native: NativeBackend,
  x: Tensor2D,
  w: Tensor2D,
  precision: ProductPrecision,
): Tensor2D {
  const { addon } = native;
  const [rows, inFeatures] = x.shape;
  const outFeatures = w.shape[1];
  return fusedOp<Tensor2D>(
    native,
    [x, w],
    () => {
      const y = native.output<Tensor2D>([rows, outFeatures]);
      addon.matmul(
        y.values,
        native.array(x),
        native.array(w),
        1,
        rows,
        outFeatures,
        inFeatures,
        false,
        false,
        precision,
      );
      return { value: y.tensor, saved: [x, w] };
    },
    (dy, [x, w]) => {
      const dx = native.output<Tensor2D>([rows, inFeatures]);
      const dw = native.output<Tensor2D>([inFeatures, outFeatures]);
      const dyValues = native.array(dy);
      addon.matmul(
        dx.values,
        dyValues,
        native.array(w!),
        1,
        rows,
        inFeatures,
        outFeatures,
        false,
        true,
        precision,
      );
      addon.matmul(
        dw.values,
        native.array(x!),
        dyValues,
        1,
        inFeatures,
        outFeatures,
        rows,
        true,
        false,
        precision,
      );
      return [dx.tensor, dw.tensor];
    },
  );
}
