import { defaultRunSpec, estimateRun, peakMemory, totalOf } from '../engine/dist/plan/index.js';
import { configOf } from './session.mjs';

/** Estimates for a side: operations of a step, its seconds and the peak memory over steps. */
export function planned(side, device) {
  const { batch, time } = side;
  const spec = specOf(side);
  const estimate = estimateRun(spec, device);
  // Steps by themselves write no checkpoint and have no probe.
  const { parts } = peakMemory(spec, device);
  return {
    operations: estimate.flopsPerToken * batch * time,
    seconds: estimate.durationSeconds,
    peakBytes: totalOf(parts) - parts.copies,
  };
}

/** One step of a side, as a job. `batch` is the number of sequences per step, `microBatch` per micro-batch. */
export function specOf({
  rank,
  batch,
  microBatch = batch,
  time,
  precision,
  headPrecision = 'same',
  recompute = false,
  ...model
}) {
  return defaultRunSpec({
    model: configOf(model),
    adapter: rank === 0 ? null : { rank, alpha: rank },
    warmStart: { stepCount: 0 },
    batch: { sequenceLength: time, sequenceCount: batch, microBatchSequenceCount: microBatch },
    precision,
    headPrecision,
    recomputation: recompute ? 'blocks' : 'none',
  });
}
