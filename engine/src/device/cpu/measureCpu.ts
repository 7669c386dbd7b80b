import { performance } from 'node:perf_hooks';
import type { DeviceSpeed } from '../../plan/deviceSpeed.js';
import type { NativeAddon } from './nativeAddon.js';

type Rates = Pick<DeviceSpeed, 'float32Flops' | 'bfloat16Flops' | 'int8Flops' | 'memoryBytesPerSecond'>;

/**
 * Peaks of the processors that the addon computes on: the best of several short windows, for what the machine does besides, trainers
 * above all, can only make one slower. Arithmetics take turns, so that whatever holds a core up for a moment falls on a window
 * of each and not on all windows of one.
 */
export function measureCpu(addon: Pick<NativeAddon, 'measurePeak' | 'addInPlace'>): Rates {
  const peaks = { float32: 0, bfloat16: 0, int8: 0 };
  for (let round = 0; round < roundCount; round++)
    for (const arithmetic of ['float32', 'bfloat16', 'int8'] as const)
      peaks[arithmetic] = Math.max(peaks[arithmetic], 1e9 * addon.measurePeak(arithmetic, windowMs));
  return {
    float32Flops: peaks.float32,
    bfloat16Flops: peaks.bfloat16,
    int8Flops: peaks.int8,
    memoryBytesPerSecond: measureMemory(addon),
  };
}

/** Together they are long enough for the processor to reach the clock it keeps under load. */
const roundCount = 6;
const windowMs = 30;
/** 128 MB in two arrays, which no cache of a core holds. */
const arrayLength = 2 ** 24;

/** Bytes a second of a sum of arrays in memory. */
function measureMemory(addon: Pick<NativeAddon, 'addInPlace'>): number {
  const sum = new Float32Array(arrayLength);
  const added = new Float32Array(arrayLength).fill(1);
  let best = 0;
  for (let round = 0; round < roundCount; round++) {
    const beganAt = performance.now();
    addon.addInPlace(sum, added);
    best = Math.max(best, (3 * sum.byteLength * 1000) / (performance.now() - beganAt));
  }
  return best;
}
