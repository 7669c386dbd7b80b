import * as tf from '@tensorflow/tfjs-core';
import type { Tensor, Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';
import { currentNative, type NativeBackend } from '../../engine/src/backend/nativeBackend.js';
import { attentionHalf, type AttentionHalf } from '../../engine/src/ops/attentionHalf.js';
import { plainCausalAttention, type AttentionShape } from '../../engine/src/ops/causalAttention.js';
import { FrozenBase } from '../../engine/src/ops/frozenBase.js';
import type { FusedLinear, HalfSettings } from '../../engine/src/ops/halfLayers.js';
import { plainLinear } from '../../engine/src/ops/linear.js';
import { plainLoraLinear } from '../../engine/src/ops/loraLinear.js';
import { mlpHalf } from '../../engine/src/ops/mlpHalf.js';
import { plainResidual } from '../../engine/src/ops/residual.js';
import { plainRmsNorm } from '../../engine/src/ops/rmsNorm.js';
import { plainRotary, RotaryTable } from '../../engine/src/ops/rotary.js';
import { plainSwiglu } from '../../engine/src/ops/swiglu.js';
import type { LayerGraph } from '../../engine/src/plan/adapterGraphs.js';
import { seeded, type OpCase } from './opCases.js';

const epsilon = 1e-6;
const scale = 0.75;

/** How the layers of a half are trained: whole, or through adapters of that rank by that graph. */
type Kind = { graph: 'trained' } | { graph: LayerGraph; rank: number };

interface LayerShape {
  name: string;
  inFeatures: number;
  outFeatures: number;
}

/** The halves of a block, in every way their layers can be computed: their plain form is made of plain ops. */
export function halfCases(size: 'small' | 'larger'): OpCase[] {
  const mlp = size === 'small' ? ([3, 4, 6, 2] as const) : ([67, 33, 70, 17] as const);
  const heads: AttentionShape =
    size === 'small'
      ? { batch: 2, time: 3, heads: 2, kvHeads: 1, headDim: 2 }
      : { batch: 2, time: 67, heads: 6, kvHeads: 2, headDim: 16 };
  const rank = mlp[3];
  const kinds: Kind[] = [
    { graph: 'trained' },
    { graph: 'separate', rank },
    { graph: 'merged', rank },
    { graph: 'weightGradient', rank },
  ];
  return kinds.flatMap((kind) =>
    [false, true].flatMap((recompute) => [
      mlpCase(mlp[0], mlp[1], mlp[2], kind, recompute),
      attentionCase(heads, mlp[1], kind, recompute, false),
      attentionCase(heads, mlp[1], kind, recompute, true),
    ]),
  );
}

function mlpCase(rows: number, hidden: number, intermediate: number, kind: Kind, recompute: boolean): OpCase {
  const shapes: LayerShape[] = [
    { name: 'gate', inFeatures: hidden, outFeatures: intermediate },
    { name: 'up', inFeatures: hidden, outFeatures: intermediate },
    { name: 'down', inFeatures: intermediate, outFeatures: hidden },
  ];
  return {
    name: `mlpHalf ${rows}x${hidden}x${intermediate} ${describe(kind, recompute)}`,
    shapes: [[rows, hidden], [hidden], ...inputShapes(shapes, kind)],
    stds: inputStds(shapes, kind),
    fused: ([x, gain, ...weights]) => {
      const settings = settingsOf(recompute);
      const [gate, up, down] = fusedLayers(settings.native, shapes, kind, weights);
      const half = { gain: gain as Tensor1D, gate: gate!, up: up!, down: down!, intermediate };
      return mlpHalf(x as Tensor2D, half, settings);
    },
    plain: ([x, gain, ...weights]) => {
      const [gate, up, down] = plainLayers(shapes, kind, weights);
      const normed = plainRmsNorm(x as Tensor2D, gain as Tensor1D, epsilon);
      return plainResidual(x as Tensor2D, down!(plainSwiglu(gate!(normed), up!(normed))));
    },
    hasProducts: true,
  };
}

function attentionCase(
  shape: AttentionShape,
  hidden: number,
  kind: Kind,
  recompute: boolean,
  biased: boolean,
): OpCase {
  const { batch, time, heads, kvHeads, headDim } = shape;
  const [width, keyWidth] = [heads * headDim, kvHeads * headDim];
  const shapes: LayerShape[] = [
    { name: 'q', inFeatures: hidden, outFeatures: width },
    { name: 'k', inFeatures: hidden, outFeatures: keyWidth },
    { name: 'v', inFeatures: hidden, outFeatures: keyWidth },
    { name: 'o', inFeatures: width, outFeatures: hidden },
  ];
  const rotaryTable = new RotaryTable(time, headDim, 10_000);
  return {
    name: `attentionHalf ${Object.values(shape).join('x')} ${describe(kind, recompute)}${biased ? ', biased' : ''}`,
    shapes: [
      [batch * time, hidden],
      [hidden],
      ...inputShapes(shapes, kind),
      ...(biased ? [[width], [keyWidth], [keyWidth]] : []),
    ],
    stds: [...inputStds(shapes, kind), ...(biased ? [0.3, 0.3, 0.3] : [])],
    fused: ([x, gain, ...weights]) => {
      const biases = biased ? (weights.splice(-3) as AttentionHalf['biases']) : null;
      const settings = settingsOf(recompute);
      const [q, k, v, o] = fusedLayers(settings.native, shapes, kind, weights);
      const half = { gain: gain as Tensor1D, q: q!, k: k!, v: v!, o: o!, biases, rotaryTable, shape };
      return attentionHalf(x as Tensor2D, half, settings);
    },
    plain: ([x, gain, ...weights]) => {
      const biases = biased ? weights.splice(-3) : [];
      const [q, k, v, o] = plainLayers(shapes, kind, weights);
      const add = (y: Tensor2D, bias: Tensor | undefined) =>
        bias === undefined ? y : tf.add<Tensor2D>(y, bias);
      const normed = plainRmsNorm(x as Tensor2D, gain as Tensor1D, epsilon);
      const turn = (y: Tensor2D, count: number) =>
        plainRotary(y, rotaryTable, { batch, time, heads: count, firstPosition: 0 });
      const mixed = plainCausalAttention(
        turn(add(q!(normed), biases[0]), heads),
        turn(add(k!(normed), biases[1]), kvHeads),
        add(v!(normed), biases[2]),
        shape,
      );
      return plainResidual(x as Tensor2D, o!(mixed));
    },
    hasProducts: true,
  };
}

const describe = (kind: Kind, recompute: boolean): string =>
  [kind.graph, 'rank' in kind && `rank ${kind.rank}`, recompute && 'made again'].filter(Boolean).join(', ');

const inputShapes = (shapes: LayerShape[], kind: Kind): number[][] =>
  shapes.flatMap(({ inFeatures, outFeatures }) =>
    kind.graph === 'trained'
      ? [[inFeatures, outFeatures]]
      : [
          [inFeatures, kind.rank],
          [kind.rank, outFeatures],
        ],
  );

/** Of the size that keeps what a layer gives near what it gets. */
const inputStds = (shapes: LayerShape[], kind: Kind): number[] => [
  1,
  1,
  ...inputShapes(shapes, kind).map(([fanIn = 1]) => 1 / Math.sqrt(fanIn)),
];

const frozenWeight = ({ name, inFeatures, outFeatures }: LayerShape): Tensor2D =>
  tf.tensor2d(seeded(inFeatures * outFeatures, name, 1 / Math.sqrt(inFeatures)), [inFeatures, outFeatures]);

function fusedLayers(
  native: NativeBackend,
  shapes: LayerShape[],
  kind: Kind,
  weights: Tensor[],
): FusedLinear[] {
  return shapes.map((shape, index) => {
    if (kind.graph === 'trained') return { trained: weights[index] as Tensor2D };
    const [a, b] = weights.slice(2 * index) as [Tensor2D, Tensor2D];
    const base = new FrozenBase(tf.keep(frozenWeight(shape)));
    if (kind.graph !== 'separate') base.packMerged(native, a, b, scale);
    return { base, graph: kind.graph, adapter: { a, b, scale, trainsA: true } };
  });
}

function plainLayers(shapes: LayerShape[], kind: Kind, weights: Tensor[]): ((x: Tensor2D) => Tensor2D)[] {
  return shapes.map((shape, index) => (x) => {
    if (kind.graph === 'trained') return plainLinear(x, weights[index] as Tensor2D);
    const [a, b] = weights.slice(2 * index) as [Tensor2D, Tensor2D];
    return plainLoraLinear(x, frozenWeight(shape), { a, b, scale, mask: null, trainsA: true });
  });
}

function settingsOf(recompute: boolean): HalfSettings {
  const native = currentNative()!;
  return { native, epsilon, precision: native.precision, recompute };
}
