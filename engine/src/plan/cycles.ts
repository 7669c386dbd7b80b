/** Determines where the cycles of a main phase begin; steps count from 0 within it. */
export interface CycleShape {
  cycleStepCount: number;
  /** Default 1: all cycles have the same length. */
  cycleGrowth?: number;
  /** Full-rank steps at the start of every cycle except the first; default 0. */
  fullRankStepCount?: number;
}

export interface Cycle {
  /** From 0. */
  index: number;
  start: number;
  /** Full length, even if the phase ends before it. */
  stepCount: number;
}

/** Steps of cycle `index`, from 0: round(R gᵏ). */
export function cycleLength({ cycleStepCount, cycleGrowth = 1 }: CycleShape, index: number): number {
  return Math.round(cycleStepCount * cycleGrowth ** index);
}

/** A known cycle from which a search may begin. */
export type CycleStart = Pick<Cycle, 'index' | 'start'>;

const firstCycle: CycleStart = { index: 0, start: 0 };

/**
 * The cycle that contains step t. Cycles of equal length are skipped together: a growth just above 1 makes hundreds of thousands of them.
 * Callers that ask for consecutive steps may pass the last answer as the start.
 */
export function cycleAt(t: number, shape: CycleShape, from: CycleStart = firstCycle): Cycle {
  const { cycleStepCount, cycleGrowth = 1 } = shape;
  if (cycleGrowth === 1) {
    const index = Math.floor(t / cycleStepCount);
    return { index, start: index * cycleStepCount, stepCount: cycleStepCount };
  }
  let { index, start } = from.start <= t ? from : firstCycle;
  for (;;) {
    const stepCount = cycleLength(shape, index);
    // The cycle of t if no later cycle were longer.
    const wanted = index + Math.floor((t - start) / stepCount);
    const last = lastOfLength(stepCount, shape, index, wanted);
    if (last === wanted) return { index: wanted, start: start + (wanted - index) * stepCount, stepCount };
    start += (last - index + 1) * stepCount;
    index = last + 1;
  }
}

/** The last cycle from `first` to `end` that has this length; lengths never decrease. */
function lastOfLength(stepCount: number, shape: CycleShape, first: number, end: number): number {
  let [last, longer] = [first, end + 1];
  while (longer - last > 1) {
    const middle = Math.floor((last + longer) / 2);
    if (cycleLength(shape, middle) === stepCount) last = middle;
    else longer = middle;
  }
  return last;
}

/** Consecutive steps that train the same weights: a whole cycle, or its full-rank steps, or the steps after these. */
export interface Stretch {
  cycleIndex: number;
  isFullRank: boolean;
  start: number;
  stepCount: number;
}

export function stretchAt(t: number, shape: CycleShape, cycle: Cycle = cycleAt(t, shape)): Stretch {
  const { index, start, stepCount } = cycle;
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

/** Steps of the last cycle that do not fit into the phase; 0 if it ends with a whole cycle. */
export function missingSteps(phaseStepCount: number, shape: CycleShape): number {
  const last = cycleAt(phaseStepCount - 1, shape);
  return last.start + last.stepCount - phaseStepCount;
}
