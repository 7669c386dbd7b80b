import { Schedule } from '../engine/dist/plan/index.js';

/** Rate of a cosine that ends at a tenth of its peak. */
const cosine = (peak, warmupStepCount) => ({
  peak,
  schedule: 'jaggedCosine',
  warmupStepCount,
  minRatio: 0.1,
});

/** A run on real text as pure functions of the step: rates, when adapters begin and when they are merged. */
export function fullRankRecipe({ stepCount, peak }) {
  return {
    stepCount,
    rank: 0,
    schedule: new Schedule({
      kind: 'fullRank',
      stepCount,
      warmStart: { stepCount: 0, learningRate: 0, warmupStepCount: 0 },
      adapter: null,
      learningRate: cosine(peak, 20),
    }),
  };
}

export function reloraRecipe({ stepCount, peak, rank, adapterPeak, warmStartStepCount, cycleStepCount }) {
  return {
    stepCount,
    rank,
    schedule: new Schedule({
      kind: 'relora',
      stepCount: stepCount - warmStartStepCount,
      warmStart: { stepCount: warmStartStepCount, learningRate: peak, warmupStepCount: 20 },
      adapter: { cycleStepCount, restartWarmupStepCount: 8 },
      learningRate: cosine(adapterPeak, 8),
    }),
  };
}

/** One step of a recipe in a child that began full-rank, after the events before that step; returns the child's answer. */
export async function stepOf(child, { rank, schedule }, step, batch) {
  let mergeSeconds = 0;
  if (rank > 0 && schedule.beginsAdapters(step)) await child.ask({ attach: { rank, alpha: rank } });
  if (schedule.restartNumberAt(step) > 0) mergeSeconds = (await child.ask({ merge: {} })).seconds;
  const answer = await child.ask({ step: { ...batch, learningRate: schedule.learningRateAt(step) } });
  return { ...answer, seconds: answer.seconds + mergeSeconds };
}
