import type { Phase, RunSpec } from './runSpec.js';

type ScheduledSpec = Pick<RunSpec, 'kind' | 'stepCount' | 'warmStart' | 'adapter' | 'learningRate'>;

/**
 * When things happen in a run, all as pure functions of the step. Steps count from 0 over all phases; `t` is the step
 * within the main phase. docs/relora.md §Learning rate has the formulas.
 */
export class Schedule {
  readonly stepCount: number;
  readonly warmStartStepCount: number;

  constructor(private readonly spec: ScheduledSpec) {
    this.warmStartStepCount = spec.kind === 'fullRank' ? 0 : spec.warmStart.stepCount;
    this.stepCount = this.warmStartStepCount + spec.stepCount;
  }

  phaseAt(step: number): Phase {
    if (this.spec.kind === 'fullRank') return 'fullRank';
    return step < this.warmStartStepCount ? 'warmStart' : 'adapter';
  }

  /** Whether the adapters appear before this step. */
  beginsAdapters(step: number): boolean {
    return this.spec.kind !== 'fullRank' && step === this.warmStartStepCount;
  }

  /** Number, from 1, of the restart that comes before this step; 0 where none does. */
  restartNumberAt(step: number): number {
    const t = step - this.warmStartStepCount;
    const restarts =
      this.spec.kind === 'relora' && t > 0 && step < this.stepCount && t % this.cycleStepCount === 0;
    return restarts ? t / this.cycleStepCount : 0;
  }

  restartSteps(): number[] {
    const steps: number[] = [];
    if (this.spec.kind !== 'relora') return steps;
    for (let t = this.cycleStepCount; t < this.spec.stepCount; t += this.cycleStepCount)
      steps.push(this.warmStartStepCount + t);
    return steps;
  }

  learningRateAt(step: number): number {
    const { learningRate, warmStart } = this.spec;
    if (this.phaseAt(step) === 'warmStart') {
      // The warm start is a phase of its own with a plain warm-up, so the restarts need no shift (differs: docs/relora.md).
      return warmStart.learningRate * Math.min(1, (step + 1) / Math.max(1, warmStart.warmupStepCount));
    }
    const t = step - this.warmStartStepCount;
    return learningRate.peak * this.multiplierAt(t);
  }

  private get cycleStepCount(): number {
    return this.spec.adapter?.cycleStepCount ?? this.spec.stepCount;
  }

  /** m(t) of the main phase. */
  private multiplierAt(t: number): number {
    const { schedule, warmupStepCount, minRatio } = this.spec.learningRate;
    const shape = {
      stepCount: this.spec.stepCount,
      warmupStepCount,
      restartWarmupStepCount: this.spec.adapter?.restartWarmupStepCount ?? 0,
      cycleStepCount: this.spec.kind === 'relora' ? this.cycleStepCount : this.spec.stepCount,
      minRatio,
    };
    switch (schedule) {
      case 'jaggedCosine':
        return jaggedCosine(t, shape);
      case 'cosine':
        return cyclicalCosine(t, shape);
      case 'linear':
        return t < warmupStepCount
          ? t / Math.max(1, warmupStepCount)
          : minRatio +
              (1 - minRatio) * (1 - (t - warmupStepCount) / Math.max(1, shape.stepCount - warmupStepCount));
      case 'constant':
        return t < warmupStepCount ? t / Math.max(1, warmupStepCount) : 1;
    }
  }
}

/** Shape of a learning rate over the main phase; steps count from 0 within it. */
export interface ScheduleShape {
  stepCount: number;
  warmupStepCount: number;
  restartWarmupStepCount: number;
  cycleStepCount: number;
  minRatio: number;
}

/** One cosine over the whole run; after each restart the rate climbs from 0 to the cosine's own value (arXiv 2307.05695). */
export function jaggedCosine(t: number, shape: ScheduleShape): number {
  const { stepCount, warmupStepCount, restartWarmupStepCount, cycleStepCount, minRatio } = shape;
  const cosine = (u: number) =>
    minRatio +
    ((1 - minRatio) * (1 + Math.cos((Math.PI * (u - warmupStepCount)) / (stepCount - warmupStepCount)))) / 2;

  if (t < warmupStepCount) return t / Math.max(1, warmupStepCount);
  const inCycle = t % cycleStepCount;
  if (t >= cycleStepCount && inCycle < restartWarmupStepCount) {
    // A short last cycle may end within its warm-up; beyond the last step the cosine would rise again.
    const warmupEnd = Math.min(t - inCycle + restartWarmupStepCount, stepCount);
    return (inCycle / Math.max(1, restartWarmupStepCount)) * cosine(warmupEnd);
  }
  return cosine(t);
}

/** A whole cosine in every cycle, each with its own warm-up. */
export function cyclicalCosine(t: number, shape: ScheduleShape): number {
  const { cycleStepCount, minRatio } = shape;
  const inCycle = t % cycleStepCount;
  const warmup = t < cycleStepCount ? shape.warmupStepCount : shape.restartWarmupStepCount;
  if (inCycle < warmup) return inCycle / Math.max(1, warmup);
  const progress = (inCycle - warmup) / Math.max(1, cycleStepCount - warmup);
  return minRatio + ((1 - minRatio) * (1 + Math.cos(Math.PI * progress))) / 2;
}
