import { servesPrecision } from './devicePrecisions.js';
import type { DeviceSpeed } from './deviceSpeed.js';
import type { RunSpec } from './runSpec.js';

/** Estimated peak memory of a run, in bytes. */
export type PeakOf = (spec: RunSpec) => number;

/** Resolves AUTO recomputation: on only if the run does not fit without it. The weights are the same either way. */
export function decideRecomputation(spec: RunSpec, peakOf: PeakOf, memoryBytesMax: number): RunSpec {
  if (spec.recomputation !== 'auto' || peakOf({ ...spec, recomputation: 'none' }) <= memoryBytesMax)
    return spec;
  const blocks: RunSpec = { ...spec, recomputation: 'blocks' };
  return peakOf(blocks) <= memoryBytesMax ? blocks : spec;
}

/** Lists changes that would make the run fit: each one that is enough by itself, else the first ones that are enough together. */
export function whatWouldFit(
  asked: RunSpec,
  peakOf: PeakOf,
  memoryBytesMax: number,
  backend: DeviceSpeed['backend'] = 'native',
): string {
  const spec: RunSpec = asked.device === 'auto' ? { ...asked, device: backend } : asked;
  const fits = (candidate: RunSpec): boolean => peakOf(candidate) <= memoryBytesMax;
  const alone = smallerForms.flatMap(({ textOf, apply }) => {
    const found = apply(spec, fits);
    return found !== null && fits(found) ? [textOf(found)] : [];
  });
  if (alone.length > 0) return `it would fit with ${alone.join(', or with ')}`;

  let smallest = spec;
  const together: string[] = [];
  for (const { textOf, apply } of smallerForms) {
    const found = apply(smallest, fits);
    if (found === null || peakOf(found) >= peakOf(smallest)) continue;
    smallest = found;
    together.push(textOf(found));
    if (fits(smallest)) return `it would fit with ${together.join(' and ')}`;
  }
  return 'no smaller form of it would; take a smaller model or shorter sequences';
}

/** A way to run the same job, or nearly the same, in less memory; null if it is already in use or not possible. */
interface SmallerForm {
  textOf(changed: RunSpec): string;
  apply(spec: RunSpec, fits: (candidate: RunSpec) => boolean): RunSpec | null;
}

/** In order of increasing effect on the result. */
const smallerForms: readonly SmallerForm[] = [
  {
    textOf: ({ batch }) => `batch.micro_batch_sequence_count ${batch.microBatchSequenceCount}`,
    apply: smallerMicroBatch,
  },
  {
    textOf: () => 'recomputation BLOCKS',
    apply: (spec) => (spec.recomputation === 'blocks' ? null : { ...spec, recomputation: 'blocks' }),
  },
  {
    textOf: () => 'optimizer.moment_type INT8',
    apply: (spec) =>
      spec.optimizer.momentType === 'int8'
        ? null
        : { ...spec, optimizer: { ...spec.optimizer, momentType: 'int8' } },
  },
  {
    textOf: ({ precision }) => `precision ${precision === 'int8Base' ? 'INT8_BASE' : 'NF4_BASE'}`,
    apply: quantizedBase,
  },
  {
    textOf: () => 'warm_start.step_count 0, since a warm start trains every weight',
    apply: (spec) =>
      spec.warmStart.stepCount === 0 ? null : { ...spec, warmStart: { ...spec.warmStart, stepCount: 0 } },
  },
];

/** The largest micro-batch that fits; one sequence if none does. */
function smallerMicroBatch(spec: RunSpec, fits: (candidate: RunSpec) => boolean): RunSpec | null {
  const { sequenceCount, microBatchSequenceCount } = spec.batch;
  if (microBatchSequenceCount === 1) return null;
  let smaller = spec;
  for (let count = microBatchSequenceCount - 1; count >= 1; count--) {
    if (sequenceCount % count !== 0) continue;
    smaller = { ...spec, batch: { ...spec.batch, microBatchSequenceCount: count } };
    if (fits(smaller)) break;
  }
  return smaller;
}

/** An int8 base if that fits, else NF4; only with adapters that do not change the base within a cycle, on devices with kernels for it. */
function quantizedBase(spec: RunSpec, fits: (candidate: RunSpec) => boolean): RunSpec | null {
  const { adapter, device, precision } = spec;
  if (adapter === null || adapter.graph === 'merged') return null;
  if (device !== 'auto' && !servesPrecision(device, 'int8Base')) return null;
  if (precision === 'nf4Base') return null;
  const int8: RunSpec = { ...spec, precision: 'int8Base' };
  return precision !== 'int8Base' && fits(int8) ? int8 : { ...spec, precision: 'nf4Base' };
}
