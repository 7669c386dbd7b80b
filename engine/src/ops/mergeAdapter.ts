import {
  add,
  all,
  isFinite as isFiniteEach,
  matMul,
  mul,
  square,
  sum,
  tidy,
  type Tensor2D,
} from '@tensorflow/tfjs-core';
import { currentNative } from '../backend/nativeBackend.js';

export interface Merged {
  /** A new tensor [in, out]; must not be used when `finite` is false. */
  merged: Tensor2D;
  finite: boolean;
  /** Frobenius norm of scale A B. */
  deltaNorm: number;
}

/** w[in, out] + scale a[in, rank] b[rank, out] in float32, the delta summed apart; nothing is changed. The caller disposes. */
export function mergeAdapter(w: Tensor2D, a: Tensor2D, b: Tensor2D, scale: number): Merged {
  const native = currentNative();
  if (native === null) return plainMergeAdapter(w, a, b, scale);
  const [inFeatures, outFeatures] = w.shape;
  const { tensor, values } = native.output<Tensor2D>(w.shape);
  const result = native.addon.mergeAdapter(
    values,
    native.array(w),
    native.array(a),
    native.array(b),
    scale,
    inFeatures,
    a.shape[1],
    outFeatures,
  );
  return { merged: tensor, ...result };
}

export function plainMergeAdapter(w: Tensor2D, a: Tensor2D, b: Tensor2D, scale: number): Merged {
  const { merged, squares, finite } = tidy(() => {
    const delta = mul(matMul(a, b), scale);
    const merged = add<Tensor2D>(w, delta);
    return { merged, squares: sum(square(delta)), finite: all(isFiniteEach(merged)) };
  });
  const result = {
    merged,
    finite: finite.dataSync()[0] === 1,
    deltaNorm: Math.sqrt(squares.dataSync()[0] ?? 0),
  };
  squares.dispose();
  finite.dispose();
  return result;
}
