import {
  add,
  div,
  mul,
  sqrt,
  square,
  sub,
  tensor,
  tidy,
  type Tensor,
  type Variable,
} from '@tensorflow/tfjs-core';
import type { AdamWOptions } from '../backend/nativeAddon.js';
import { currentNative } from '../backend/nativeBackend.js';
import { decode, encode, type CodedValues } from './momentCodes.js';

export type { AdamWOptions };

/** A parameter, its gradient and its moments in float32. */
export interface AdamWUpdate {
  parameter: Variable;
  gradient: Tensor;
  first: Variable;
  second: Variable;
}

/** The same with moments in eight bits. */
export interface CodedAdamWUpdate {
  parameter: Variable;
  gradient: Tensor;
  first: CodedValues<Int8Array>;
  second: CodedValues<Uint8Array>;
}

/**
 * One AdamW update (Loshchilov and Hutter 2019, decoupled decay) of each parameter and its two moments; gradients are
 * multiplied by gradientScale first. Natively one pass over memory for all of them, in the variables' own buffers.
 */
export function adamWInPlace(updates: readonly AdamWUpdate[], options: AdamWOptions): void {
  const native = currentNative();
  // A buffer that another tensor shares must not change under it.
  const inPlace = updates.filter(
    ({ parameter, first, second }) =>
      native !== null && [parameter, first, second].every((variable) => native.isSole(variable)),
  );
  for (const update of updates) {
    if (!inPlace.includes(update)) plainAdamW(update, options);
  }
  if (native === null || inPlace.length === 0) return;
  native.addon.adamWInPlace(
    inPlace.map(({ parameter }) => native.array(parameter)),
    inPlace.map(({ first }) => native.array(first)),
    inPlace.map(({ second }) => native.array(second)),
    inPlace.map(({ gradient }) => native.array(gradient)),
    options,
  );
}

/** As `adamWInPlace`: moments are decoded, updated in float32 and encoded anew, block by block. */
export function codedAdamWInPlace(updates: readonly CodedAdamWUpdate[], options: AdamWOptions): void {
  const native = currentNative();
  const inPlace = updates.filter(({ parameter }) => native !== null && native.isSole(parameter));
  for (const update of updates) {
    if (!inPlace.includes(update)) plainCodedAdamW(update, options);
  }
  if (native === null || inPlace.length === 0) return;
  native.addon.codedAdamWInPlace(
    inPlace.map(({ parameter }) => native.array(parameter)),
    inPlace.map(({ first }) => first.codes),
    inPlace.map(({ first }) => first.scales),
    inPlace.map(({ second }) => second.codes),
    inPlace.map(({ second }) => second.scales),
    inPlace.map(({ gradient }) => native.array(gradient)),
    options,
  );
}

export function plainAdamW({ parameter, gradient, first, second }: AdamWUpdate, options: AdamWOptions): void {
  tidy(() => {
    const updated = updatedMoments(first, second, gradient, options);
    first.assign(updated.first);
    second.assign(updated.second);
    parameter.assign(updatedParameter(parameter, first, second, options));
  });
}

export function plainCodedAdamW(
  { parameter, gradient, first, second }: CodedAdamWUpdate,
  options: AdamWOptions,
): void {
  tidy(() => {
    const { shape } = parameter;
    const updated = updatedMoments(
      tensor(decode(first), shape),
      tensor(decode(second), shape),
      gradient,
      options,
    );
    parameter.assign(updatedParameter(parameter, updated.first, updated.second, options));
    encode(first, updated.first.dataSync<'float32'>());
    encode(second, updated.second.dataSync<'float32'>());
  });
}

function updatedMoments(first: Tensor, second: Tensor, gradient: Tensor, options: AdamWOptions) {
  const { beta1, beta2, gradientScale } = options;
  const scaled = mul(gradient, gradientScale);
  return {
    first: add(mul(first, beta1), mul(scaled, 1 - beta1)),
    second: add(mul(second, beta2), mul(square(scaled), 1 - beta2)),
  };
}

function updatedParameter(parameter: Tensor, first: Tensor, second: Tensor, options: AdamWOptions): Tensor {
  const { learningRate, epsilon, weightDecay, correction1, correction2 } = options;
  const step = div(div(first, correction1), add(sqrt(div(second, correction2)), epsilon));
  return sub(parameter, mul(add(step, mul(parameter, weightDecay)), learningRate));
}
