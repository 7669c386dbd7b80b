import type { Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';
import type { AttentionShape } from './causalAttention.js';
import { fusedHalf } from './fusedHalf.js';
import {
  isCompact,
  layerArguments,
  layerWithGradients,
  separateRank,
  type FusedLinear,
  type HalfSettings,
} from './halfLayers.js';
import type { RotaryTable } from './rotary.js';

export interface AttentionHalf {
  gain: Tensor1D;
  q: FusedLinear;
  k: FusedLinear;
  v: FusedLinear;
  o: FusedLinear;
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
  const { gain, q, k, v, o, rotaryTable, shape } = half;
  const { batch, time, heads, kvHeads, headDim } = shape;
  const [rows, hidden] = x.shape;
  const compact = isCompact(settings);
  const layers = [q, k, v, o];
  const dimensions = [batch, time, heads, kvHeads, headDim] as const;
  const angles = [rotaryTable.cos, rotaryTable.sin] as const;
  const scale = 1 / Math.sqrt(headDim);
  const end = [epsilon, precision, compact] as const;
  return fusedHalf(x, gain, layers, settings, {
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
        ...end,
      ),
    backward: (dx, dgain, dy, state, x) => {
      const [ofQ, ofK, ofV, ofO] = layers.map((layer) => layerWithGradients(native, layer));
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
        ...end,
      );
      return [ofQ!, ofK!, ofV!, ofO!].flatMap(({ take }) => take());
    },
  });
}
