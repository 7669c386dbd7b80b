import type { Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';
import type { HalfBiases } from '../backend/nativeAddon.js';
import type { AttentionShape } from './causalAttention.js';
import { fusedHalf } from './fusedHalf.js';
import {
  isCompact,
  layerArguments,
  layerWithGradients,
  separateRank,
  trainedTensors,
  type FusedLinear,
  type HalfSettings,
} from './halfLayers.js';
import type { RotaryTable } from './rotary.js';

const none = new Float32Array(0);
const noBiases: HalfBiases = [none, none, none];

export interface AttentionHalf {
  gain: Tensor1D;
  q: FusedLinear;
  k: FusedLinear;
  v: FusedLinear;
  o: FusedLinear;
  /** Of q, k and v; null for none. */
  biases: [q: Tensor1D, k: Tensor1D, v: Tensor1D] | null;
  rotaryTable: RotaryTable;
  shape: AttentionShape;
}

/**
 * x + o(attention(rotary(q(n)), rotary(k(n)), v(n))) with n = rmsNorm(x, gain), sequences from position 0, natively in
 * one. Its plain definition is the composition of the ops of these names in model/decoder.ts.
 */
export function attentionHalf(x: Tensor2D, half: AttentionHalf, settings: HalfSettings): Tensor2D {
  const { native, epsilon, precision } = settings;
  const { addon } = native;
  const { gain, q, k, v, o, biases, rotaryTable, shape } = half;
  const { batch, time, heads, kvHeads, headDim } = shape;
  const [rows, hidden] = x.shape;
  const compact = isCompact(settings);
  const layers = [q, k, v, o];
  const dimensions = [batch, time, heads, kvHeads, headDim] as const;
  const angles = [rotaryTable.cos, rotaryTable.sin] as const;
  const scale = 1 / Math.sqrt(headDim);
  const end = [epsilon, precision, compact] as const;
  const biasValues = () =>
    biases === null ? noBiases : (biases.map((bias) => native.array(bias)) as HalfBiases);
  return fusedHalf(x, gain, [...layers.flatMap(trainedTensors), ...(biases ?? [])], settings, {
    stateLength: () =>
      addon.attentionHalfStateLength(
        ...dimensions,
        separateRank(q),
        separateRank(k),
        separateRank(v),
        separateRank(o),
        compact,
      ),
    forward: (y, state, x) =>
      addon.attentionHalfForward(
        y,
        state,
        x,
        native.array(gain),
        rows,
        hidden,
        ...angles,
        ...dimensions,
        scale,
        ...layerArguments(native, q),
        ...layerArguments(native, k),
        ...layerArguments(native, v),
        ...layerArguments(native, o),
        ...biasValues(),
        ...end,
      ),
    backward: (dx, dgain, dy, state, x) => {
      const [ofQ, ofK, ofV, ofO] = layers.map((layer) => layerWithGradients(native, layer));
      const ofBiases = biases?.map((bias) => native.output<Tensor1D>(bias.shape)) ?? [];
      addon.attentionHalfBackward(
        dx,
        dgain,
        dy,
        state,
        x,
        native.array(gain),
        rows,
        hidden,
        ...angles,
        ...dimensions,
        scale,
        ...ofQ!.args,
        ...ofK!.args,
        ...ofV!.args,
        ...ofO!.args,
        ...(biases === null ? noBiases : (ofBiases.map(({ values }) => values) as HalfBiases)),
        ...biasValues(),
        ...end,
      );
      return [
        ...[ofQ!, ofK!, ofV!, ofO!].flatMap(({ take }) => take()),
        ...ofBiases.map(({ tensor }) => tensor),
      ];
    },
  });
}
