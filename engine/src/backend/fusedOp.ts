import { customGrad } from '@tensorflow/tfjs-core';
import type { GradSaveFunc, Tensor } from '@tensorflow/tfjs-core';
import type { NativeBackend } from './nativeBackend.js';

/**
 * Runs an op whose forward and backward pass are native. `forward` returns the result and what the backward pass needs;
 * `backward` gets the gradient of the result and those tensors, and returns one new gradient for each input, in order.
 * Saved tensors are given back right after, so memory falls while the backward pass goes on; second derivatives do not exist.
 */
export function fusedOp<T extends Tensor>(
  native: NativeBackend,
  inputs: Tensor[],
  forward: () => { value: T; saved: Tensor[] },
  backward: (dy: T, saved: Tensor[]) => Tensor[],
): T {
  const op = customGrad<T>((...inputsAndSave: (Tensor | GradSaveFunc)[]) => {
    const save = inputsAndSave.at(-1) as GradSaveFunc;
    const { value, saved } = forward();
    save(saved);
    return {
      value,
      gradFunc: (dy: T, kept: Tensor[]) => {
        const gradients = backward(dy, kept);
        for (const tensor of kept) tensor.dispose();
        if (native.ownsGradients) dy.dispose();
        return gradients;
      },
    };
  });
  return op(...inputs);
}
