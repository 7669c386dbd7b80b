import { performance } from 'node:perf_hooks';
import { measuredProduct, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type { BasePrecision, NativeAddon } from './nativeAddon.js';

type Rates = Pick<DeviceSpeed, 'float32Flops' | 'bfloat16Flops' | 'int8Flops' | 'memoryBytesPerSecond'>;
type Kernels = Pick<
  NativeAddon,
  'packBase' | 'releaseBase' | 'linearForward' | 'linearBackward' | 'addInPlace'
>;

/** Milliseconds that have passed, and those that all threads of this process together have computed. */
const realClocks = {
  wall: (): number => performance.now(),
  processor: (): number => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  },
};

/**
 * Rates of the processors that the addon uses, with `threadCount` threads: the best of several short windows, since other work on the
 * machine, mainly trainers, can only slow a window down. Precisions alternate, so that a short disturbance hits one window of each and not
 * all windows of one. One thread is measured in processor time, which does not count the turns of others; several take over each other's
 * parts of a product in such turns, so that only the time that has passed says something.
 */
export function measureCpu(addon: Kernels, threadCount: number, clocks = realClocks): Rates {
  const timed = (clock: () => number, run: () => void): number => {
    const beganAt = clock();
    run();
    return (clock() - beganAt) / 1000;
  };
  const clock = threadCount === 1 ? clocks.processor : clocks.wall;
  const precisions = ['float32', 'bfloat16', 'int8'] as const;
  const layers = precisions.map((precision) => layerOf(addon, precision));
  const seconds = precisions.map(() => ({ forward: Infinity, backward: Infinity }));
  const beganAt = clocks.wall();
  for (let round = 0; round < roundCount && clocks.wall() - beganAt < millisecondsMax; round++)
    layers.forEach(({ forward, backward }, i) => {
      const best = seconds[i]!;
      best.forward = Math.min(best.forward, timed(clock, forward));
      best.backward = Math.min(best.backward, timed(clock, backward));
    });
  for (const { release } of layers) release();
  const [float32Flops, bfloat16Flops, int8Flops] = seconds.map(
    ({ forward, backward }) => (2 * productOperations) / (forward + backward),
  ) as [number, number, number];

  const sum = new Float32Array(arrayLength);
  const added = new Float32Array(arrayLength).fill(1);
  const adding = Array.from({ length: addingCount }, () =>
    timed(clocks.wall, () => addon.addInPlace(sum, added)),
  );
  const memoryBytesPerSecond = (3 * sum.byteLength) / Math.min(...adding);
  return { float32Flops, bfloat16Flops, int8Flops, memoryBytesPerSecond };
}

/** Together long enough for the processor to reach its clock under sustained load. */
const roundCount = 60;
/** Slow processors make fewer rounds. */
const millisecondsMax = 2000;
const { rows, inFeatures, outFeatures } = measuredProduct;
const productOperations = 2 * rows * inFeatures * outFeatures;
/** 128 MB in two arrays, more than the caches of a core hold: adding them is limited by the memory. */
const arrayLength = 2 ** 24;
const addingCount = 6;

/** The products of a frozen layer: x w, and dy wᵀ. */
function layerOf(
  addon: Kernels,
  precision: BasePrecision,
): Record<'forward' | 'backward' | 'release', () => void> {
  const filled = (length: number): Float32Array => new Float32Array(length).fill(1);
  const base = addon.packBase(filled(inFeatures * outFeatures), inFeatures, outFeatures, precision);
  const layer = { base, adapter: null };
  const [x, dx] = [filled(rows * inFeatures), filled(rows * inFeatures)];
  const [y, dy] = [filled(rows * outFeatures), filled(rows * outFeatures)];
  return {
    forward: () => addon.linearForward(y, null, x, layer, rows),
    backward: () => addon.linearBackward(dx, null, null, dy, null, null, layer, rows),
    release: () => addon.releaseBase(base),
  };
}
