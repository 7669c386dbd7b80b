import { add, div, mul, sqrt, square, sub, tidy, type Tensor, type Variable } from '@tensorflow/tfjs-core';
import type { NativeAddon } from '../backend/nativeAddon.js';
import { currentNative } from '../backend/nativeBackend.js';

export type AdamWOptions = Parameters<NativeAddon['adamWInPlace']>[4];

/**
 * One AdamW update (Loshchilov and Hutter 2019, decoupled decay) of a parameter and its two moments; the gradient is
 * multiplied by gradientScale first. Natively one pass over memory, in the variables' own buffers.
 */
export function adamWInPlace(
  parameter: Variable,
  firstMoment: Variable,
  secondMoment: Variable,
  gradient: Tensor,
  options: AdamWOptions,
): void {
  const native = currentNative();
  const variables = [parameter, firstMoment, secondMoment];
  // A buffer that another tensor shares must not change under it.
  if (native === null || !variables.every((tensor) => native.isSole(tensor))) {
    plainAdamW(parameter, firstMoment, secondMoment, gradient, options);
    return;
  }
  native.addon.adamWInPlace(
    native.array(parameter),
    native.array(firstMoment),
    native.array(secondMoment),
    native.array(gradient),
    options,
  );
}

export function plainAdamW(
  parameter: Variable,
  firstMoment: Variable,
  secondMoment: Variable,
  gradient: Tensor,
  options: AdamWOptions,
): void {
  const { learningRate, beta1, beta2, epsilon, weightDecay, correction1, correction2, gradientScale } =
    options;
  tidy(() => {
    const scaled = mul(gradient, gradientScale);
    firstMoment.assign(add(mul(firstMoment, beta1), mul(scaled, 1 - beta1)));
    secondMoment.assign(add(mul(secondMoment, beta2), mul(square(scaled), 1 - beta2)));
    const step = div(div(firstMoment, correction1), add(sqrt(div(secondMoment, correction2)), epsilon));
    parameter.assign(sub(parameter, mul(add(step, mul(parameter, weightDecay)), learningRate)));
  });
}
