import * as tf from '@tensorflow/tfjs-core';
import type { Scalar, Tensor, Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';
import {
  causalAttention,
  plainCausalAttention,
  type AttentionShape,
} from '../../engine/src/ops/causalAttention.js';
import { embedding, plainEmbedding } from '../../engine/src/ops/embedding.js';
import { FrozenBase } from '../../engine/src/ops/frozenBase.js';
import { headCrossEntropy, plainHeadCrossEntropy } from '../../engine/src/ops/headCrossEntropy.js';
import { linear, plainLinear } from '../../engine/src/ops/linear.js';
import { loraLinear, plainLoraLinear, type AdapterPass } from '../../engine/src/ops/loraLinear.js';
import { plainResidual, residual } from '../../engine/src/ops/residual.js';
import { plainRmsNorm, rmsNorm } from '../../engine/src/ops/rmsNorm.js';
import { plainRotary, rotary, RotaryTable } from '../../engine/src/ops/rotary.js';
import { plainSwiglu, swiglu } from '../../engine/src/ops/swiglu.js';
import { Random } from '../../engine/src/random.js';

/** One op at one set of shapes: its fused and its plain form, as functions of all inputs that have a gradient. */
export interface OpCase {
  name: string;
  /** Shapes of the inputs. */
  shapes: number[][];
  /** Deviation of each input; 1 where none are given. */
  stds?: number[];
  fused(inputs: Tensor[]): Tensor;
  plain(inputs: Tensor[]): Tensor;
  /** Products are rounded to bfloat16 where the backend does that. */
  hasProducts: boolean;
}

export function seeded(length: number, name: string, std = 1): Float32Array {
  const values = new Float32Array(length);
  Random.forStream(7, name).fillNormal(values, std);
  return values;
}

/** Small and odd sizes, for finite differences. */
export const smallCases: OpCase[] = [
  linearCase(3, 5, 4),
  frozenCase(3, 5, 4),
  loraCase(3, 5, 4, 2),
  loraVariantCase(3, 5, 4, 2),
  rmsNormCase(3, 5),
  rotaryCase({ batch: 2, time: 3, heads: 1, firstPosition: 2 }, 4),
  attentionCase({ batch: 2, time: 3, heads: 2, kvHeads: 2, headDim: 2 }),
  attentionCase({ batch: 1, time: 4, heads: 4, kvHeads: 2, headDim: 2 }),
  swigluCase(3, 5),
  residualCase(3, 5),
  embeddingCase(5, 6, 3),
  headCase(5, 3, 7),
];

/** Odd sizes around and beyond the tiles of the kernels. */
export const largerCases: OpCase[] = [
  linearCase(1, 17, 33),
  linearCase(67, 65, 63),
  frozenCase(33, 48, 70),
  loraCase(1, 16, 16, 1),
  loraCase(67, 65, 63, 17),
  loraVariantCase(33, 24, 40, 5),
  rmsNormCase(17, 129),
  rotaryCase({ batch: 2, time: 9, heads: 3, firstPosition: 0 }, 16),
  attentionCase({ batch: 2, time: 67, heads: 3, kvHeads: 3, headDim: 16 }),
  attentionCase({ batch: 1, time: 33, heads: 6, kvHeads: 2, headDim: 24 }),
  swigluCase(17, 129),
  residualCase(17, 129),
  embeddingCase(40, 90, 17),
  headCase(70, 33, 301),
];

function linearCase(rows: number, inFeatures: number, outFeatures: number): OpCase {
  return {
    name: `linear ${rows}x${inFeatures}x${outFeatures}`,
    shapes: [
      [rows, inFeatures],
      [inFeatures, outFeatures],
    ],
    fused: ([x, w]) => linear(x as Tensor2D, w as Tensor2D),
    plain: ([x, w]) => plainLinear(x as Tensor2D, w as Tensor2D),
    hasProducts: true,
  };
}

function frozenCase(rows: number, inFeatures: number, outFeatures: number): OpCase {
  return {
    name: `frozen linear ${rows}x${inFeatures}x${outFeatures}`,
    shapes: [[rows, inFeatures]],
    ...overFrozenBase(inFeatures, outFeatures, () => null),
    hasProducts: true,
  };
}

function loraCase(rows: number, inFeatures: number, outFeatures: number, rank: number): OpCase {
  return {
    name: `loraLinear ${rows}x${inFeatures}x${outFeatures} rank ${rank}`,
    shapes: [
      [rows, inFeatures],
      [inFeatures, rank],
      [rank, outFeatures],
    ],
    ...overFrozenBase(inFeatures, outFeatures, ([, a, b]) => ({
      a: a as Tensor2D,
      b: b as Tensor2D,
      scale: 0.75,
      mask: null,
      trainsA: true,
    })),
    hasProducts: true,
  };
}

function loraVariantCase(rows: number, inFeatures: number, outFeatures: number, rank: number): OpCase {
  const mask = new Float32Array(rows * inFeatures);
  Random.forStream(7, 'mask').fillDropoutMask(mask, 0.3);
  return {
    name: `loraLinear with dropout and a trainable scale ${rows}x${inFeatures}x${outFeatures} rank ${rank}`,
    shapes: [[rows, inFeatures], [inFeatures, rank], [rank, outFeatures], []],
    ...overFrozenBase(inFeatures, outFeatures, ([, a, b, g]) => ({
      a: a as Tensor2D,
      b: b as Tensor2D,
      scale: g as Scalar,
      mask: tf.tensor2d(mask, [rows, inFeatures]),
      trainsA: true,
    })),
    hasProducts: true,
  };
}

function overFrozenBase(
  inFeatures: number,
  outFeatures: number,
  adapter: (inputs: Tensor[]) => AdapterPass | null,
) {
  const weight = () => tf.tensor2d(seeded(inFeatures * outFeatures, 'frozen'), [inFeatures, outFeatures]);
  return {
    fused: (inputs: Tensor[]) =>
      loraLinear(inputs[0] as Tensor2D, new FrozenBase(tf.keep(weight())), adapter(inputs)),
    plain: (inputs: Tensor[]) => plainLoraLinear(inputs[0] as Tensor2D, weight(), adapter(inputs)),
  };
}

function rmsNormCase(rows: number, dim: number): OpCase {
  return {
    name: `rmsNorm ${rows}x${dim}`,
    shapes: [[rows, dim], [dim]],
    fused: ([x, gain]) => rmsNorm(x as Tensor2D, gain as Tensor1D, 1e-6),
    plain: ([x, gain]) => plainRmsNorm(x as Tensor2D, gain as Tensor1D, 1e-6),
    hasProducts: false,
  };
}

function rotaryCase(shape: Parameters<typeof rotary>[2], headDim: number): OpCase {
  const table = new RotaryTable(shape.firstPosition + shape.time, headDim, 10_000);
  return {
    name: `rotary of ${shape.heads} heads of ${headDim} from position ${shape.firstPosition}`,
    shapes: [[shape.batch * shape.time, shape.heads * headDim]],
    fused: ([x]) => rotary(x as Tensor2D, table, shape),
    plain: ([x]) => plainRotary(x as Tensor2D, table, shape),
    hasProducts: false,
  };
}

function attentionCase(shape: AttentionShape): OpCase {
  const rows = shape.batch * shape.time;
  return {
    name: `causalAttention ${Object.values(shape).join('x')}`,
    shapes: [
      [rows, shape.heads * shape.headDim],
      [rows, shape.kvHeads * shape.headDim],
      [rows, shape.kvHeads * shape.headDim],
    ],
    fused: ([q, k, v]) => causalAttention(q as Tensor2D, k as Tensor2D, v as Tensor2D, shape),
    plain: ([q, k, v]) => plainCausalAttention(q as Tensor2D, k as Tensor2D, v as Tensor2D, shape),
    hasProducts: true,
  };
}

function swigluCase(rows: number, dim: number): OpCase {
  return {
    name: `swiglu ${rows}x${dim}`,
    shapes: [
      [rows, dim],
      [rows, dim],
    ],
    fused: ([gate, up]) => swiglu(gate as Tensor2D, up as Tensor2D),
    plain: ([gate, up]) => plainSwiglu(gate as Tensor2D, up as Tensor2D),
    hasProducts: false,
  };
}

function residualCase(rows: number, dim: number): OpCase {
  return {
    name: `residual ${rows}x${dim}`,
    shapes: [
      [rows, dim],
      [rows, dim],
    ],
    fused: ([x, y]) => residual(x as Tensor2D, y as Tensor2D),
    plain: ([x, y]) => plainResidual(x as Tensor2D, y as Tensor2D),
    hasProducts: false,
  };
}

function embeddingCase(vocabulary: number, rows: number, dim: number): OpCase {
  const ids = Int32Array.from({ length: rows }, (_, row) => (row * 3) % vocabulary); // some twice, some never
  return {
    name: `embedding ${rows} of ${vocabulary}x${dim}`,
    shapes: [[vocabulary, dim]],
    fused: ([table]) => embedding(table as Tensor2D, ids),
    plain: ([table]) => plainEmbedding(table as Tensor2D, ids),
    hasProducts: false,
  };
}

function headCase(rows: number, dim: number, vocabulary: number): OpCase {
  const targets = Int32Array.from({ length: rows }, (_, row) =>
    row % 4 === 1 ? -1 : (row * 5) % vocabulary,
  );
  return {
    name: `headCrossEntropy ${rows}x${dim} over ${vocabulary}`,
    shapes: [
      [rows, dim],
      [vocabulary, dim],
    ],
    fused: ([x, head]) => headCrossEntropy(x as Tensor2D, head as Tensor2D, targets, 0.125),
    plain: ([x, head]) => plainHeadCrossEntropy(x as Tensor2D, head as Tensor2D, targets, 0.125),
    hasProducts: true,
  };
}
