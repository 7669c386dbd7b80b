import { estimateRun, targetModules } from '../engine/dist/plan/index.js';
import { configOf } from './session.mjs';

/** Bytes of a frozen weight in the form that products read. */
const packedBytes = { float32: 4, bfloat16: 2, int8Base: 1, nf4Base: 0.5 };

/** What the plan says of a side before it runs: operations of a step, its seconds and the peak of memory. */
export function planned(side, peakGflops) {
  const { batch, time, precision } = side;
  const estimate = estimateRun(specOf(side), {
    flopsPerSecond: peakGflops * 1e9,
    packedBytes: packedBytes[precision] ?? 4,
  });
  return {
    operations: estimate.flopsPerToken * batch * time,
    seconds: estimate.durationSeconds,
    peakBytes: estimate.peakMemoryBytes,
  };
}

/** One step of it, as a job. */
function specOf({ rank, batch, time, precision, ...model }) {
  const adapter = {
    rank,
    alpha: rank,
    dropout: 0,
    targetModules: [...targetModules],
    trainableScale: false,
    cycleStepCount: 1,
    restartWarmupStepCount: 0,
  };
  return {
    kind: rank === 0 ? 'fullRank' : 'relora',
    model: configOf(model),
    adapter: rank === 0 ? null : adapter,
    warmStart: { stepCount: 0, learningRate: 1, warmupStepCount: 0 },
    stepCount: 1,
    batch: { sequenceLength: time, sequenceCount: batch, microBatchSequenceCount: batch },
    precision,
    checkpoint: { everyStepCount: 1, keepCount: 2 },
    export: { weightType: 'float32' },
  };
}
