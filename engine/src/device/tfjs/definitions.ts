import * as tf from '@tensorflow/tfjs-core';
import type { Scalar, Tensor, Tensor1D, Tensor2D, Tensor4D, Tensor5D } from '@tensorflow/tfjs-core';
import type { AttentionHalf, AttentionShape, MlpHalf } from '../device.js';
import { beginsOf } from '../hostDocuments.js';

/**
 * Plain definitions of the parts of a model, in differentiable tfjs ops: the reference for every device. x is [rows, features] throughout.
 */

/** The tensors of a layer. */
export interface LayerTensors {
  /** [in, out] */
  weight: Tensor2D;
  adapter: AdapterTensors | null;
  /** [out] */
  bias: Tensor1D | null;
}

export interface AdapterTensors {
  /** [in, rank] */
  a: Tensor2D;
  /** [rank, out] */
  b: Tensor2D;
  /** The constant s, or the trainable g of s = tanh(g). */
  scale: number | Scalar;
  /** [rows, in]: zero or 1 / (1 - share), on the adapter's input only. */
  mask: Tensor2D | null;
}

/** x W + s ((mask x) A) B + bias. The scale is applied to x A, which has the fewest elements. */
export function layer(x: Tensor2D, { weight, adapter, bias }: LayerTensors): Tensor2D {
  let y: Tensor2D = tf.matMul(x, weight);
  if (adapter !== null) {
    const { a, b, scale, mask } = adapter;
    const dropped = mask === null ? x : tf.mul<Tensor2D>(x, mask);
    const factor = typeof scale === 'number' ? tf.scalar(scale) : tf.tanh(scale);
    const p = tf.mul<Tensor2D>(tf.matMul(dropped, a), factor);
    y = tf.add<Tensor2D>(y, tf.matMul(p, b));
  }
  return bias === null ? y : tf.add<Tensor2D>(y, bias);
}

/** x / sqrt(mean(x²) + epsilon) * gain. */
export function rmsNorm(x: Tensor2D, gain: Tensor1D, epsilon: number): Tensor2D {
  const meanSquare = tf.mul(tf.sum(tf.square(x), 1, true), 1 / x.shape[1]); // [rows, 1]
  return tf.mul(tf.mul(x, tf.rsqrt(tf.add(meanSquare, epsilon))), gain);
}

/** Cosines and sines of positions, each [time, headDim / 2], or of all rows, [batch * time, headDim / 2]. */
export interface AngleTensors {
  cos: Tensor2D;
  sin: Tensor2D;
}

/** x[batch * time, heads * headDim]: entry i of a head is rotated with entry i + headDim / 2. */
export function rotary(
  x: Tensor2D,
  angles: AngleTensors,
  { batch, time, headDim }: AttentionShape,
  heads: number,
): Tensor2D {
  const half = headDim / 2;
  const [cos, sin] = [angles.cos, angles.sin].map((values) => tf.reshape(values, [-1, time, 1, half])) as [
    Tensor4D,
    Tensor4D,
  ];
  const whole = tf.reshape(x, [batch, time, heads, headDim]);
  const first = tf.slice(whole, [0, 0, 0, 0], [batch, time, heads, half]);
  const second = tf.slice(whole, [0, 0, 0, half], [batch, time, heads, half]);
  const turned = tf.concat<Tensor4D>(
    [
      tf.sub<Tensor4D>(tf.mul(first, cos), tf.mul(second, sin)),
      tf.add<Tensor4D>(tf.mul(second, cos), tf.mul(first, sin)),
    ],
    3,
  );
  return tf.reshape(turned, x.shape);
}

/** softmax(q kᵀ / sqrt(headDim)) v over past and present positions of each sequence, or of each document in it. */
export function causalAttention(
  q: Tensor2D,
  k: Tensor2D,
  v: Tensor2D,
  shape: AttentionShape,
  documents: Int32Array | null,
): Tensor2D {
  const { batch, time, heads, headDim } = shape;
  const queries = byHead(q, shape, heads); // [batch, heads, time, headDim]
  const keys = repeatHeads(byHead(k, shape, shape.kvHeads), shape);
  const values = repeatHeads(byHead(v, shape, shape.kvHeads), shape);
  const scores = tf.mul(tf.matMul(queries, keys, false, true), 1 / Math.sqrt(headDim)); // [batch, heads, time, time]
  const weights = tf.softmax(
    tf.add(scores, documents === null ? futureMask(time) : documentMask(documents, time)),
  );
  return tf.reshape(tf.transpose(tf.matMul(weights, values), [0, 2, 1, 3]), [batch * time, heads * headDim]);
}

function byHead(x: Tensor2D, { batch, time, headDim }: AttentionShape, heads: number): Tensor4D {
  return tf.transpose(tf.reshape(x, [batch, time, heads, headDim]), [0, 2, 1, 3]);
}

/** [batch, kvHeads, time, headDim] -> [batch, heads, time, headDim], each key head repeated for its group of queries. */
function repeatHeads(x: Tensor4D, { batch, time, heads, kvHeads, headDim }: AttentionShape): Tensor4D {
  if (heads === kvHeads) return x;
  const grouped = tf.reshape(x, [batch, kvHeads, 1, time, headDim]) as Tensor5D;
  return tf.reshape(tf.mul(grouped, tf.ones([1, 1, heads / kvHeads, 1, 1])), [batch, heads, time, headDim]);
}

/** Added to scores: 0 for past and present, and for the future a value so low that its weight is exactly 0. */
function futureMask(time: number): Tensor2D {
  const mask = new Float32Array(time * time);
  for (let row = 0; row < time; row++) mask.fill(-1e30, row * time + row + 1, (row + 1) * time);
  return tf.tensor2d(mask, [time, time]);
}

/** The same for each sequence, [batch, 1, time, time]; also masks what is before the document of a row. */
function documentMask(documents: Int32Array, time: number): Tensor4D {
  const mask = new Float32Array(documents.length * time);
  documents.forEach((begin, row) => {
    mask.fill(-1e30, row * time, row * time + begin);
    mask.fill(-1e30, row * time + (row % time) + 1, (row + 1) * time);
  });
  return tf.tensor4d(mask, [documents.length / time, 1, time, time]);
}

/** silu(gate) * up, elementwise (Shazeer 2020). */
export function swiglu(gate: Tensor2D, up: Tensor2D): Tensor2D {
  return tf.mul(tf.mul(gate, tf.sigmoid(gate)), up);
}

export type AttentionLayers = Record<'q' | 'k' | 'v' | 'o', LayerTensors>;
export type MlpLayers = Record<'gate' | 'up' | 'down', LayerTensors>;

/** Gains of each head of queries and keys, [headDim]. */
export type HeadGains = Record<'q' | 'k', Tensor1D>;

/** Normalizes each head of x[rows, heads * headDim]. */
export function headNorm(x: Tensor2D, gain: Tensor1D, epsilon: number): Tensor2D {
  const heads = tf.reshape(x, [-1, gain.shape[0]]) as Tensor2D;
  return tf.reshape(rmsNorm(heads, gain, epsilon), x.shape);
}

/**
 * x + o(attend(rotary(q(n)), rotary(k(n)), v(n))) with n = rmsNorm(x, gain). With head norms, q(n) and k(n) are normalized before their
 * rotation; without angles there is no rotation.
 */
export function attentionHalf(
  x: Tensor2D,
  gain: Tensor1D,
  layers: AttentionLayers,
  headGains: HeadGains | null,
  { shape, epsilon, documents }: Pick<AttentionHalf, 'shape' | 'epsilon' | 'documents'>,
  angles: AngleTensors | null,
  attend = (q: Tensor2D, k: Tensor2D, v: Tensor2D): Tensor2D =>
    causalAttention(q, k, v, shape, beginsOf(documents)),
): Tensor2D {
  const n = rmsNorm(x, gain, epsilon);
  const through = (of: 'q' | 'k', heads: number) => {
    const made = layer(n, layers[of]);
    const normed = headGains === null ? made : headNorm(made, headGains[of], epsilon);
    return angles === null ? normed : rotary(normed, angles, shape, heads);
  };
  const [q, k] = [through('q', shape.heads), through('k', shape.kvHeads)];
  const v = layer(n, layers.v);
  return tf.add(x, layer(attend(q, k, v), layers.o));
}

/** x + down(silu(gate(n)) * up(n)) with n = rmsNorm(x, gain). */
export function mlpHalf(
  x: Tensor2D,
  gain: Tensor1D,
  layers: MlpLayers,
  { epsilon }: Pick<MlpHalf, 'epsilon'>,
): Tensor2D {
  const n = rmsNorm(x, gain, epsilon);
  return tf.add(x, layer(swiglu(layer(n, layers.gate), layer(n, layers.up)), layers.down));
}

/** [rows, vocabulary]: the log-probability of each row's target in its column, 0 elsewhere. Logits are x head[vocabulary, hidden]ᵀ. */
export function targetLogProbabilities(x: Tensor2D, head: Tensor2D, targets: Int32Array): Tensor2D {
  const logProbabilities = tf.logSoftmax(tf.matMul(x, head, false, true)); // [rows, vocabulary]
  // A row of zeros for a target of -1.
  return tf.mul(logProbabilities, tf.oneHot(tf.tensor1d(targets, 'int32'), head.shape[0], 1, 0, 'float32'));
}

/** scale * the sum over rows of the cross-entropy. */
export function headCrossEntropy(x: Tensor2D, head: Tensor2D, targets: Int32Array, scale: number): Scalar {
  return tf.mul(tf.neg(tf.sum(targetLogProbabilities(x, head, targets))), scale);
}

/** Rows of table[vocabulary, hidden] at ids. */
export function embedding(table: Tensor2D, ids: Int32Array): Tensor2D {
  return tf.gather(table, tf.tensor1d(ids, 'int32'));
}

/** W + scale A B, and the squares of the added values. */
export function merge(
  weight: Tensor2D,
  a: Tensor2D,
  b: Tensor2D,
  scale: number,
): { merged: Tensor2D; squares: Tensor } {
  const delta = tf.mul(tf.matMul(a, b), scale);
  return { merged: tf.add(weight, delta), squares: tf.sum(tf.square(delta)) };
}
