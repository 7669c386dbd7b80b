import * as tf from '@tensorflow/tfjs-core';
import type { Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';

/** Definitions of the matrix optimizers; docs/relora.md has the formulas and their sources. */

/** Coefficients of a Newton-Schulz step a x + b x³ + c x⁵ (Jordan and others 2024). */
const [first, third, fifth] = [3.4445, -4.775, 2.0315];
const stepCount = 5;
/** Root mean square of a Muon update per unit of learning rate: the same as AdamW's (arXiv 2502.16982). */
const updateSize = 0.2;
/** Largest singular value of a step's change to B, however small A is. */
const bStepMax = 0.2;
/** Precision of float32 sums, relative to the mean diagonal of a Gram matrix. */
const gramResolution = 1e-6;
/** For APOLLO-Mini: how much shorter the projection on one direction is than the gradient, and the largest growth of a step. */
const stepScale = Math.sqrt(128);
const growthMax = 1.01;

export interface MatrixStep {
  learningRate: number;
  momentum: number;
  weightDecay: number;
}

/** m = beta m + g, u = g + beta m. */
export function nesterov<T extends Tensor1D | Tensor2D>(m: T, g: T, momentum: number): { m: T; u: T } {
  const next = tf.add(tf.mul(m, momentum), g) as T;
  return { m: next, u: tf.add(g, tf.mul(next, momentum)) as T };
}

/** Makes every singular value that is not tiny relative to the norm close to 1. */
export function matrixSign(matrix: Tensor2D): Tensor2D {
  const [rows, columns] = matrix.shape;
  const norm = Math.sqrt(matrix.dataSync<'float32'>().reduce((sum, value) => sum + value * value, 0));
  let x: Tensor2D = tf.mul(rows > columns ? tf.transpose(matrix) : matrix, norm > 0 ? 1 / norm : 0);
  for (let step = 0; step < stepCount; step++) {
    const square = tf.matMul(x, x, false, true);
    const both = tf.add(tf.mul(square, third), tf.mul(tf.matMul(square, square), fifth)) as Tensor2D;
    x = tf.add(tf.mul(x, first), tf.matMul(both, x));
  }
  return rows > columns ? tf.transpose(x) : x;
}

/** Muon: w - rate (decay w + 0.2 sqrt(max(rows, columns)) sign(u)). */
export function muonStep(w: Tensor2D, u: Tensor2D, { learningRate, weightDecay }: MatrixStep): Tensor2D {
  const scaled = tf.mul(matrixSign(u), updateScale(learningRate, w.shape));
  return tf.sub(tf.mul(w, 1 - learningRate * weightDecay), scaled);
}

/**
 * LoRA-Muon of a[in, rank], b[rank, out] with their u; uA null: A is frozen. Null if the rate is 0, which changes nothing. dA = sign(uA
 * L_B⁻ᵀ) L_B⁻¹ and dB = L_A⁻ᵀ sign(L_A⁻¹ uB), with L Lᵀ the damped Gram matrix of the factor.
 */
export function loraMuonStep(
  [a, b]: readonly [Tensor2D, Tensor2D],
  [uA, uB]: readonly [Tensor2D | null, Tensor2D],
  scale: number,
  { learningRate, weightDecay }: MatrixStep,
): { a: Tensor2D; b: Tensor2D } | null {
  const shape = [a.shape[0], b.shape[1]] as const;
  const budget = updateScale(learningRate, shape) / Math.abs(scale) / (uA === null ? 1 : 2);
  if (budget === 0) return null;
  const dampingFor = (stepMax: number): number => (budget / stepMax) ** 2;
  const ofA = inverseFactor(tf.matMul(a, a, true, false), dampingFor(bStepMax));
  const dB = tf.matMul(ofA, matrixSign(tf.matMul(ofA, uB)), true, false);
  const nextB = tf.sub(tf.mul(b, 1 - learningRate * weightDecay), tf.mul(dB, budget)) as Tensor2D;
  if (uA === null) return { a, b: nextB };
  // However small B is, as after a merge, A takes at most half a step of Muon: by longer ones it would lose its directions.
  const ofB = inverseFactor(tf.matMul(b, b, false, true), dampingFor(updateScale(learningRate, a.shape) / 2));
  const dA = tf.matMul(matrixSign(tf.matMul(uA, ofB, false, true)), ofB);
  return { a: tf.sub(a, tf.mul(dA, budget)), b: nextB };
}

/** L⁻¹ of S + damping I = L Lᵀ, in float64. */
function inverseFactor(gram: Tensor2D, damping: number): Tensor2D {
  const r = gram.shape[0];
  const s = Float64Array.from(gram.dataSync());
  let trace = 0;
  for (let i = 0; i < r; i++) trace += s[i * r + i]!;
  const added = Math.max(damping, (gramResolution * trace) / r);
  const l = new Float64Array(r * r);
  for (let i = 0; i < r; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = s[i * r + j]! + (i === j ? added : 0);
      for (let k = 0; k < j; k++) sum -= l[i * r + k]! * l[j * r + k]!;
      l[i * r + j] = i === j ? Math.sqrt(sum) : sum / l[j * r + j]!;
    }
  }
  const inverse = new Float32Array(r * r);
  for (let column = 0; column < r; column++) {
    const x = new Float64Array(r);
    for (let i = column; i < r; i++) {
      let sum = i === column ? 1 : 0;
      for (let k = column; k < i; k++) sum -= l[i * r + k]! * x[k]!;
      x[i] = sum / l[i * r + i]!;
      inverse[i * r + column] = x[i]!;
    }
  }
  return tf.tensor2d(inverse, [r, r]);
}

function updateScale(learningRate: number, [rows, columns]: readonly [number, number]): number {
  return learningRate * updateSize * Math.sqrt(Math.max(rows, columns));
}

/** The gradient projected along its smaller side on one direction. */
export function shadowOf(g: Tensor2D, projection: Tensor1D): Tensor1D {
  const [rows, columns] = g.shape;
  const isTall = rows > columns;
  const direction = tf.reshape(projection, isTall ? [columns, 1] : [1, rows]) as Tensor2D;
  return tf.reshape(isTall ? tf.matMul(g, direction) : tf.matMul(direction, g), [-1]) as Tensor1D;
}

/** Factor of the gradient: the ratio by which Adam lengthens its projection, with limited growth. */
export function apolloFactor(
  step: Tensor1D,
  shadow: Tensor1D,
  gradientNorm: number,
  lastNorm: number,
): { factor: number; norm: number } {
  const plain = lengthOf(shadow);
  const factor = plain > 0 ? (stepScale * lengthOf(step)) / plain : 0;
  const norm = factor * gradientNorm;
  const limit = lastNorm > 0 && norm > growthMax * lastNorm ? (growthMax * lastNorm) / norm : 1;
  return { factor: factor * limit, norm: norm * limit };
}

export function lengthOf(tensor: Tensor1D | Tensor2D): number {
  return Math.sqrt(tensor.dataSync<'float32'>().reduce((sum, value) => sum + value * value, 0));
}
