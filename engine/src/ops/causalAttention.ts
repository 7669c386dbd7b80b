import { add, matMul, mul, ones, reshape, softmax, tensor2d, transpose } from '@tensorflow/tfjs-core';
import type { Tensor1D, Tensor2D, Tensor4D, Tensor5D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import type { ProductPrecision } from '../backend/nativeAddon.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

export interface AttentionShape {
  batch: number;
  time: number;
  heads: number;
  /** Divides heads; query head h reads key head floor(h * kvHeads / heads). */
  kvHeads: number;
  headDim: number;
}

/**
 * softmax(q kᵀ / sqrt(headDim)) v over the past and present of each sequence: q[batch * time, heads * headDim], k and
 * v[batch * time, kvHeads * headDim] -> [batch * time, heads * headDim]. The native kernel never holds [time, time].
 */
export function causalAttention(
  q: Tensor2D,
  k: Tensor2D,
  v: Tensor2D,
  shape: AttentionShape,
  precision?: ProductPrecision,
): Tensor2D {
  const native = currentNative();
  if (native === null) return plainCausalAttention(q, k, v, shape);
  return nativeCausalAttention(native, q, k, v, shape, precision ?? native.precision);
}

export function plainCausalAttention(q: Tensor2D, k: Tensor2D, v: Tensor2D, shape: AttentionShape): Tensor2D {
  const { batch, time, heads, headDim } = shape;
  const queries = byHead(q, shape, heads); // [batch, heads, time, headDim]
  const keys = repeatHeads(byHead(k, shape, shape.kvHeads), shape);
  const values = repeatHeads(byHead(v, shape, shape.kvHeads), shape);
  const scores = mul(matMul(queries, keys, false, true), 1 / Math.sqrt(headDim)); // [batch, heads, time, time]
  const weights = softmax(add(scores, futureMask(time)));
  return reshape(transpose(matMul(weights, values), [0, 2, 1, 3]), [batch * time, heads * headDim]);
}

function byHead(x: Tensor2D, { batch, time, headDim }: AttentionShape, heads: number): Tensor4D {
  return transpose(reshape(x, [batch, time, heads, headDim]), [0, 2, 1, 3]);
}

/** [batch, kvHeads, time, headDim] -> [batch, heads, time, headDim], each key head repeated for its group of queries. */
function repeatHeads(x: Tensor4D, { batch, time, heads, kvHeads, headDim }: AttentionShape): Tensor4D {
  if (heads === kvHeads) return x;
  const grouped = reshape(x, [batch, kvHeads, 1, time, headDim]) as Tensor5D;
  return reshape(mul(grouped, ones([1, 1, heads / kvHeads, 1, 1])), [batch, heads, time, headDim]);
}

/** Added to scores: 0 for past and present, so far below for the future that its weight is exactly 0. */
function futureMask(time: number): Tensor2D {
  const mask = new Float32Array(time * time);
  for (let row = 0; row < time; row++) mask.fill(-1e30, row * time + row + 1, (row + 1) * time);
  return tensor2d(mask, [time, time]);
}

function nativeCausalAttention(
  native: NativeBackend,
  q: Tensor2D,
  k: Tensor2D,
  v: Tensor2D,
  shape: AttentionShape,
  precision: ProductPrecision,
): Tensor2D {
  const { addon } = native;
  const { batch, time, heads, kvHeads, headDim } = shape;
  const scale = 1 / Math.sqrt(headDim);
  return fusedOp<Tensor2D>(
    native,
    [q, k, v],
    () => {
      const out = native.output<Tensor2D>(q.shape);
      const logSumExp = native.output<Tensor1D>([batch * heads * time]);
      addon.attentionForward(
        out.values,
        logSumExp.values,
        native.array(q),
        native.array(k),
        native.array(v),
        batch,
        time,
        heads,
        kvHeads,
        headDim,
        scale,
        precision,
      );
      return { value: out.tensor, saved: [q, k, v, out.tensor, logSumExp.tensor] };
    },
    (dout, [q, k, v, out, logSumExp]) => {
      const dq = native.output<Tensor2D>(q!.shape);
      const dk = native.output<Tensor2D>(k!.shape);
      const dv = native.output<Tensor2D>(v!.shape);
      addon.attentionBackward(
        dq.values,
        dk.values,
        dv.values,
        native.array(dout),
        native.array(q!),
        native.array(k!),
        native.array(v!),
        native.array(out!),
        native.array(logSumExp!),
        batch,
        time,
        heads,
        kvHeads,
        headDim,
        scale,
        precision,
      );
      return [dq.tensor, dk.tensor, dv.tensor];
    },
  );
}
