import { estimateRun, peakMemory, targetModules, totalOf } from '../engine/dist/plan/index.js';
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
  const adapter = {
    rank,
    alpha: rank,
    dropout: 0,
    targetModules: [...targetModules],
    trainableScale: false,
    graph: 'auto',
    cycleStepCount: 1,
    restartWarmupStepCount: 0,
    initialisation: 'random',
    trainedFactors: 'both',
    cycleGrowth: 1,
    fullRankStepCount: 0,
    moduleRanks: {},
  };
  return {
    kind: rank === 0 ? 'fullRank' : 'relora',
    model: configOf(model),
    adapter: rank === 0 ? null : adapter,
    warmStart: { stepCount: 0, learningRate: 1, warmupStepCount: 0 },
    stepCount: 1,
    batch: { sequenceLength: time, sequenceCount: batch, microBatchSequenceCount: microBatch },
    optimizer: { momentType: 'float32' },
    precision,
    recomputation: recompute ? 'blocks' : 'none',
    checkpoint: { everyStepCount: 1, keepCount: 2 },
    export: { weightType: 'float32' },
  };
}
