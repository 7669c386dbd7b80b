/** What decides where the cycles of a main phase begin; steps count from 0 within it. */
export interface CycleShape {
  cycleStepCount: number;
  /** Default 1: all cycles are alike. */
  cycleGrowth?: number;
  /** Full-rank steps that each cycle but the first begins with; default 0. */
  fullRankStepCount?: number;
}

export interface Cycle {
  /** From 0. */
  index: number;
  start: number;
  /** As it would be if the phase did not end before. */
  stepCount: number;
}

/** Steps of cycle `index`, from 0: round(R gᵏ). */
export function cycleLength({ cycleStepCount, cycleGrowth = 1 }: CycleShape, index: number): number {
  return Math.round(cycleStepCount * cycleGrowth ** index);
}

/** The cycle that step t is in. */
export function cycleAt(t: number, shape: CycleShape): Cycle {
  const { cycleStepCount, cycleGrowth = 1 } = shape;
  if (cycleGrowth === 1) {
    const index = Math.floor(t / cycleStepCount);
    return { index, start: index * cycleStepCount, stepCount: cycleStepCount };
  }
  let start = 0;
  for (let index = 0; ; index++) {
    const stepCount = cycleLength(shape, index);
    if (t < start + stepCount) return { index, start, stepCount };
    start += stepCount;
  }
}

/** A stretch of steps that train the same weights: a cycle, or the full-rank steps that it begins with, or what follows them. */
export interface Stretch {
  cycleIndex: number;
  isFullRank: boolean;
  start: number;
  stepCount: number;
}

export function stretchAt(t: number, shape: CycleShape): Stretch {
  const { index, start, stepCount } = cycleAt(t, shape);
  const fullRankStepCount = index === 0 ? 0 : (shape.fullRankStepCount ?? 0);
  return t - start < fullRankStepCount
    ? { cycleIndex: index, isFullRank: true, start, stepCount: fullRankStepCount }
    : {
        cycleIndex: index,
        isFullRank: false,
        start: start + fullRankStepCount,
        stepCount: stepCount - fullRankStepCount,
      };
}

/** Steps of the last cycle that the phase has no room for; 0 where it ends with a whole cycle. */
export function missingSteps(phaseStepCount: number, shape: CycleShape): number {
  const last = cycleAt(phaseStepCount - 1, shape);
  return last.start + last.stepCount - phaseStepCount;
}
