import { add, customGrad, matMul, mul, scalar, tanh } from '@tensorflow/tfjs-core';
import type { GradSaveFunc, Scalar, Tensor, Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import type { ProductPrecision } from '../backend/nativeAddon.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';
import type { FrozenBase } from './frozenBase.js';
import type { GradientWatcher } from './halfLayers.js';
import { linear } from './linear.js';

/** The adapter of one layer in one pass. */
export interface AdapterPass {
  /** [in, rank] */
  a: Tensor2D;
  /** [rank, out] */
  b: Tensor2D;
  /** The constant s = alpha / rank, or the trainable g of s = tanh(g). */
  scale: number | Scalar;
  /** [rows, in]: zero or 1 / (1 - dropout), on the adapter's input only. */
  mask: Tensor2D | null;
  /** Whether A gets a gradient. */
  trainsA: boolean;
}

/** x[rows, in] W + s (x A) B -> [rows, out]. W is frozen: it never gets a gradient, only x, A, B and a trainable scale do. */
export function loraLinear(
  x: Tensor2D,
  base: FrozenBase,
  adapter: AdapterPass | null,
  precision?: ProductPrecision,
): Tensor2D {
  const native = currentNative();
  if (native === null) return plainLoraLinear(x, base.weight, adapter);
  if (precision !== undefined && !native.usesPacked(precision))
    return unpackedLoraLinear(x, base.weight, adapter, precision);
  if (adapter === null) return nativeFrozenLinear(native, x, base);
  const { scale, mask } = adapter;
  if (typeof scale === 'number' && mask === null) return nativeLoraLinear(native, x, base, adapter, scale);
  return add(nativeFrozenLinear(native, x, base), adapterPath(x, adapter, linear));
}

/** From the float32 weight instead of its packed form: for probes in another precision than the run's. */
function unpackedLoraLinear(
  x: Tensor2D,
  w: Tensor2D,
  adapter: AdapterPass | null,
  precision: ProductPrecision,
): Tensor2D {
  const product = (x: Tensor2D, w: Tensor2D) => linear(x, w, precision);
  return adapter === null ? product(x, w) : add(product(x, w), adapterPath(x, adapter, product));
}

export function plainLoraLinear(x: Tensor2D, w: Tensor2D, adapter: AdapterPass | null): Tensor2D {
  const y = plainFrozenLinear(x, w);
  return adapter === null ? y : add(y, adapterPath(x, adapter, matMul));
}

/** s (mask x A) B. The scale is applied at the rank, where there is least to multiply. */
function adapterPath(
  x: Tensor2D,
  adapter: AdapterPass,
  product: (x: Tensor2D, w: Tensor2D) => Tensor2D,
): Tensor2D {
  const { a, b, scale, mask } = adapter;
  const dropped = mask === null ? x : mul<Tensor2D>(x, mask);
  const factor = typeof scale === 'number' ? scalar(scale) : tanh(scale);
  return product(mul<Tensor2D>(product(dropped, a), factor), b);
}

/** x W with a gradient for x alone; a watcher is shown that of W. */
export function plainFrozenLinear(x: Tensor2D, w: Tensor2D, watcher?: GradientWatcher): Tensor2D {
  const op = customGrad<Tensor2D>((...inputsAndSave: (Tensor | GradSaveFunc)[]) => {
    (inputsAndSave[1] as GradSaveFunc)(watcher === undefined ? [w] : [w, x]);
    return {
      value: matMul(x, w),
      gradFunc: (dy, [w, x]) => {
        if (watcher !== undefined) {
          const gradient = matMul(x as Tensor2D, dy, true, false);
          watcher(gradient.dataSync<'float32'>());
          gradient.dispose();
        }
        return matMul(dy, w as Tensor2D, false, true);
      },
    };
  });
  return op(x);
}

function nativeFrozenLinear(native: NativeBackend, x: Tensor2D, base: FrozenBase): Tensor2D {
  const { addon } = native;
  const [rows, inFeatures] = x.shape;
  const outFeatures = base.weight.shape[1];
  const none = new Float32Array(0);
  return fusedOp<Tensor2D>(
    native,
    [x],
    () => {
      const y = native.output<Tensor2D>([rows, outFeatures]);
      addon.loraLinearForward(
        y.values,
        none,
        native.array(x),
        base.panelsFor(native),
        none,
        none,
        0,
        rows,
        0,
      );
      return { value: y.tensor, saved: [x] };
    },
    (dy, [x]) => {
      const dx = native.output<Tensor2D>([rows, inFeatures]);
      addon.loraLinearBackward(
        dx.values,
        none,
        none,
        native.array(dy),
        native.array(x!),
        none,
        base.panelsFor(native),
        none,
        none,
        0,
        rows,
        0,
      );
      return [dx.tensor];
    },
  );
}

function nativeLoraLinear(
  native: NativeBackend,
  x: Tensor2D,
  base: FrozenBase,
  { a, b, trainsA }: AdapterPass,
  scale: number,
): Tensor2D {
  const { addon } = native;
  const [rows, inFeatures] = x.shape;
  const [rank, outFeatures] = b.shape;
  return fusedOp<Tensor2D>(
    native,
    trainsA ? [x, a, b] : [x, b],
    () => {
      const y = native.output<Tensor2D>([rows, outFeatures]);
      const xa = native.output<Tensor2D>([rows, rank]);
      addon.loraLinearForward(
        y.values,
        xa.values,
        native.array(x),
        base.panelsFor(native),
        native.array(a),
        native.array(b),
        scale,
        rows,
        rank,
      );
      return { value: y.tensor, saved: [x, xa.tensor, a, b] };
    },
    (dy, [x, xa, a, b]) => {
      const dx = native.output<Tensor2D>([rows, inFeatures]);
      const da = trainsA ? native.output<Tensor2D>([inFeatures, rank]) : null;
      const db = native.output<Tensor2D>([rank, outFeatures]);
      addon.loraLinearBackward(
        dx.values,
        da?.values ?? new Float32Array(0),
        db.values,
        native.array(dy),
        native.array(x!),
        native.array(xa!),
        base.panelsFor(native),
        native.array(a!),
        native.array(b!),
        scale,
        rows,
        rank,
      );
      return da === null ? [dx.tensor, db.tensor] : [dx.tensor, da.tensor, db.tensor];
    },
  );
}
