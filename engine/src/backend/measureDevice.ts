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
/** 128 MB in two arrays, which no cache of a core holds. */
const arrayLength = 2 ** 24;

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
    memoryBytesPerSecond: native === null ? 0 : measureMemory(native),
  };
}

/** The best of several sums of arrays in memory. */
function measureMemory(native: NativeAddon): number {
  const sum = new Float32Array(arrayLength);
  const added = new Float32Array(arrayLength).fill(1);
  let seconds = Infinity;
  for (let window = 0; window < windowCount; window++) {
    const beganAt = performance.now();
    native.addInPlace(sum, added);
    seconds = Math.min(seconds, (performance.now() - beganAt) / 1000);
  }
  return (3 * sum.byteLength) / seconds;
}
