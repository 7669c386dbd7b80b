import type { Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';
import { fusedHalf } from './fusedHalf.js';
import {
  isCompact,
  layerArguments,
  layerWithGradients,
  separateRank,
  type FusedLinear,
  type HalfSettings,
} from './halfLayers.js';

export interface MlpHalf {
  gain: Tensor1D;
  gate: FusedLinear;
  up: FusedLinear;
  down: FusedLinear;
  intermediate: number;
}

/**
 * x + down(silu(gate(n)) * up(n)) with n = rmsNorm(x, gain), natively in one. Its plain definition is the composition of
 * rmsNorm, linear layers, swiglu and residual in model/decoder.ts.
 */
export function mlpHalf(x: Tensor2D, half: MlpHalf, settings: HalfSettings): Tensor2D {
  const { native, epsilon, precision } = settings;
  const { addon } = native;
  const { gain, gate, up, down, intermediate } = half;
  const [rows, hidden] = x.shape;
  const compact = isCompact(settings);
  const layers = [gate, up, down];
  const dimensions = [rows, hidden, intermediate] as const;
  const end = [epsilon, precision, compact] as const;
  return fusedHalf(x, gain, layers, settings, {
    stateLength: () =>
      addon.mlpHalfStateLength(
        rows,
        intermediate,
        separateRank(gate),
        separateRank(up),
        separateRank(down),
        compact,
      ),
    forward: (y, state, x) =>
      addon.mlpHalfForward(
        y,
        state,
        x,
        native.array(gain),
        ...dimensions,
        ...layerArguments(native, gate),
        ...layerArguments(native, up),
        ...layerArguments(native, down),
        ...end,
      ),
    backward: (dx, dgain, dy, state, x) => {
      const [ofGate, ofUp, ofDown] = layers.map((layer) => layerWithGradients(native, layer));
      addon.mlpHalfBackward(
        dx,
        dgain,
        dy,
        state,
        x,
        native.array(gain),
        ...dimensions,
        ...ofGate!.args,
        ...ofUp!.args,
        ...ofDown!.args,
        ...end,
      );
      return [ofGate!, ofUp!, ofDown!].flatMap(({ take }) => take());
    },
  });
}
