import { defaultRunSpec, estimateRun, peakMemory, totalOf } from '../engine/dist/plan/index.js';
import { configOf } from './session.mjs';

/** What the plan says of a side before it runs: operations of a step, its seconds and the peak of memory over steps. */
export function planned(side, device) {
  const { batch, time } = side;
  const spec = specOf(side);
  const estimate = estimateRun(spec, device);
  // Steps alone write no checkpoint and probe nothing.
  const peak = peakMemory(spec, device);
  return {
    operations: estimate.flopsPerToken * batch * time,
    seconds: estimate.durationSeconds,
    peakBytes: totalOf(peak) - peak.copies,
  };
}

/** One step of it, as a job. `batch` counts the sequences of a step, `microBatch` those computed at a time. */
export function specOf({ rank, batch, microBatch = batch, time, precision, recompute = false, ...model }) {
  return defaultRunSpec({
    model: configOf(model),
    adapter: rank === 0 ? null : { rank, alpha: rank },
    warmStart: { stepCount: 0 },
    batch: { sequenceLength: time, sequenceCount: batch, microBatchSequenceCount: microBatch },
    precision,
    recomputation: recompute ? 'blocks' : 'none',
  });
}
