import { performance } from 'node:perf_hooks';
import type { DeviceSpeed } from '../../plan/deviceSpeed.js';
import type { NativeAddon } from './nativeAddon.js';

type Rates = Pick<DeviceSpeed, 'float32Flops' | 'bfloat16Flops' | 'int8Flops' | 'memoryBytesPerSecond'>;

/**
 * Peak rates of the processors that the addon uses: the best of several short windows, since other work on the machine, mainly trainers,
 * can only slow a window down. Precisions alternate, so that a short disturbance hits one window of each and not all windows of one.
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

/** Together long enough for the processor to reach its clock under sustained load. */
const roundCount = 6;
const windowMs = 30;
/** 128 MB in two arrays, more than the caches of a core hold. */
const arrayLength = 2 ** 24;

/** Memory bandwidth of adding arrays, bytes per second. */
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
