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

/** Where a search for a cycle may begin: at one that is known. */
export type CycleStart = Pick<Cycle, 'index' | 'start'>;

const firstCycle: CycleStart = { index: 0, start: 0 };

/**
 * The cycle that step t is in. Cycles of one length are passed over together: a growth just above 1 makes hundreds of thousands of
 * them. Whoever asks for one step after the other may begin at the last answer.
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
    // Where t would be if no later cycle were longer.
    const wanted = index + Math.floor((t - start) / stepCount);
    const last = lastOfLength(stepCount, shape, index, wanted);
    if (last === wanted) return { index: wanted, start: start + (wanted - index) * stepCount, stepCount };
    start += (last - index + 1) * stepCount;
    index = last + 1;
  }
}

/** The last cycle from `first` to `end` that is as long as the first; lengths never fall. */
function lastOfLength(stepCount: number, shape: CycleShape, first: number, end: number): number {
  let [last, longer] = [first, end + 1];
  while (longer - last > 1) {
    const middle = Math.floor((last + longer) / 2);
    if (cycleLength(shape, middle) === stepCount) last = middle;
    else longer = middle;
  }
  return last;
}

/** A stretch of steps that train the same weights: a cycle, or the full-rank steps that it begins with, or what follows them. */
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

/** Steps of the last cycle that the phase has no room for; 0 where it ends with a whole cycle. */
export function missingSteps(phaseStepCount: number, shape: CycleShape): number {
  const last = cycleAt(phaseStepCount - 1, shape);
  return last.start + last.stepCount - phaseStepCount;
}
