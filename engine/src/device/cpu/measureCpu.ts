import { performance } from 'node:perf_hooks';
import type { DeviceSpeed } from '../../plan/deviceSpeed.js';
import type { NativeAddon } from './nativeAddon.js';

type Rates = Pick<DeviceSpeed, 'float32Flops' | 'bfloat16Flops' | 'int8Flops' | 'memoryBytesPerSecond'>;

/** Peaks of the processors that the addon computes on. */
export function measureCpu(addon: NativeAddon): Rates {
  const peak = (arithmetic: 'float32' | 'bfloat16' | 'int8'): number =>
    1e9 * best(() => addon.measurePeak(arithmetic, windowMs));
  return {
    float32Flops: peak('float32'),
    bfloat16Flops: peak('bfloat16'),
    int8Flops: peak('int8'),
    memoryBytesPerSecond: measureMemory(addon),
  };
}

/**
 * The best of several short windows: what the machine does besides, trainers above all, can only make one slower. Together
 * they are long enough for the processor to reach the clock it keeps under load.
 */
const windowCount = 6;
const windowMs = 30;
/** 128 MB in two arrays, which no cache of a core holds. */
const arrayLength = 2 ** 24;

function best(window: () => number): number {
  return Math.max(...Array.from({ length: windowCount }, window));
}

/** Bytes a second of a sum of arrays in memory. */
function measureMemory(addon: NativeAddon): number {
  const sum = new Float32Array(arrayLength);
  const added = new Float32Array(arrayLength).fill(1);
  return best(() => {
    const beganAt = performance.now();
    addon.addInPlace(sum, added);
    return (3 * sum.byteLength * 1000) / (performance.now() - beganAt);
  });
}
