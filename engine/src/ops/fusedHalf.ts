import type { Tensor, Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import type { HalfSettings } from './halfLayers.js';

/** The native calls of one kind of half. */
interface HalfCalls {
  /** Floats that are kept for the backward pass. */
  stateLength(): number;
  /** Without y only the state is made. */
  forward(y: Float32Array | null, state: Float32Array | null, x: Float32Array): void;
  /** Gives the gradients of what is trained beside the gain, in order. */
  backward(
    dx: Float32Array,
    dgain: Float32Array,
    dy: Float32Array,
    state: Float32Array,
    x: Float32Array,
  ): Tensor[];
}

/**
 * A half of a block as one op of x[rows, hidden], its norm's gain and what else of it is trained. The state between the passes is a buffer
 * that tfjs does not see: opaque, held only while a gradient is to come, or made again from x when settings say so.
 */
export function fusedHalf(
  x: Tensor2D,
  gain: Tensor1D,
  trained: Tensor[],
  { native, recompute }: HalfSettings,
  calls: HalfCalls,
): Tensor2D {
  let state: Float32Array | null = null;
  return fusedOp<Tensor2D>(
    native,
    [x, gain, ...trained],
    () => {
      const y = native.output<Tensor2D>(x.shape);
      if (native.recordsGradients && !recompute) state = native.takeBuffer(calls.stateLength());
      calls.forward(y.values, state, native.array(x));
      return { value: y.tensor, saved: [x] };
    },
    (dy, [x]) => {
      const xValues = native.array(x!);
      if (state === null) {
        state = native.takeBuffer(calls.stateLength());
        calls.forward(null, state, xValues);
      }
      const dx = native.output<Tensor2D>(x!.shape);
      const dgain = native.output<Tensor1D>(gain.shape);
      const gradients = calls.backward(dx.values, dgain.values, native.array(dy), state, xValues);
      native.giveBuffer(state);
      state = null;
      return [dx.tensor, dgain.tensor, ...gradients];
    },
  );
}
