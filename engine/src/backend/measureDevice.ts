import { performance } from 'node:perf_hooks';
import type { DeviceSpeed } from '../plan/deviceSpeed.js';
import type { NativeAddon } from './nativeAddon.js';
import type { Backend } from './selectBackend.js';

/**
 * The best of several short windows: what the machine does besides, trainers above all, can only make one slower. Together
 * they are long enough for the processor to reach the clock it keeps under load.
 */
const windowCount = 6;
const windowMs = 30;
/** 128 MB in all, which no cache holds. */
const updateLength = 2 ** 23;
/** Read: a parameter, its gradient and two moments; written: all but the gradient. */
const updateBytesEach = 28;

/** Measured speed of a backend, in under a second. What cannot be measured is 0. */
export function measureDevice(backend: Backend): DeviceSpeed {
  const { native, instructionSet, threadCount, precision } = backend;
  const peak = (precision: 'float32' | 'bfloat16' | 'int8'): number =>
    native === null
      ? 0
      : 1e9 * Math.max(...Array.from({ length: windowCount }, () => native.measurePeak(precision, windowMs)));
  return {
    instructionSet,
    threadCount,
    autoPrecision: precision,
    float32Flops: peak('float32'),
    bfloat16Flops: peak('bfloat16'),
    int8Flops: peak('int8'),
    updateBytesPerSecond: native === null ? 0 : measureUpdate(native),
  };
}

/** Of AdamW on parameters in memory. */
function measureUpdate(native: NativeAddon): number {
  const array = (): Float32Array => new Float32Array(updateLength).fill(1);
  const [parameter, first, second, gradient] = [array(), array(), array(), array()];
  const options = {
    learningRate: 0,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weightDecay: 0,
    correction1: 1,
    correction2: 1,
    gradientScale: 1,
  };
  let seconds = Infinity;
  for (let window = 0; window < windowCount; window++) {
    const beganAt = performance.now();
    native.adamWInPlace(parameter, first, second, gradient, options);
    seconds = Math.min(seconds, (performance.now() - beganAt) / 1000);
  }
  return (updateBytesEach * updateLength) / seconds;
}
