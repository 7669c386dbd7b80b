import { cycleAt, cycleLength, stretchAt, type Cycle, type CycleShape, type Stretch } from './cycles.js';
import type { AdapterSettings, Phase, RunSpec, StreamVersions } from './runSpec.js';

type ScheduledSpec = Pick<RunSpec, 'kind' | 'stepCount' | 'learningRate'> & {
  warmStart: Pick<RunSpec['warmStart'], 'stepCount' | 'learningRate' | 'warmupStepCount'>;
  adapter: Pick<AdapterSettings, keyof CycleShape | 'restartWarmupStepCount'> | null;
} & Partial<Pick<RunSpec, 'omittedSteps'>> & { streams?: Partial<StreamVersions> };

/**
 * When things happen in a run, all as pure functions of the step. Steps count from 0 over all phases; `t` is the step within the main
 * phase. docs/relora.md §Learning rate has the formulas.
 */
export class Schedule {
  readonly stepCount: number;
  readonly warmStartStepCount: number;
  /** Without restarts, one cycle as long as the phase. */
  private readonly cycles: Required<CycleShape>;
  /** The cycle of the last query: the next query is usually for it or one soon after. */
  private lastCycle: Cycle | undefined;

  constructor(private readonly spec: ScheduledSpec) {
    this.warmStartStepCount = spec.kind === 'fullRank' ? 0 : spec.warmStart.stepCount;
    this.stepCount = this.warmStartStepCount + spec.stepCount;
    this.cycles = cyclesOf(spec);
  }

  phaseAt(step: number): Phase {
    if (this.spec.kind === 'fullRank') return 'fullRank';
    if (step < this.warmStartStepCount) return 'warmStart';
    return this.stretchAt(step).isFullRank ? 'fullRank' : 'adapter';
  }

  /** Whether adapters are created before this step: after the warm start, and after full-rank steps between cycles. */
  beginsAdapters(step: number): boolean {
    return this.phaseAt(step) === 'adapter' && (step === 0 || this.phaseAt(step - 1) !== 'adapter');
  }

  /** Number, from 1, of the restart right before this step; 0 if there is none. */
  restartNumberAt(step: number): number {
    const t = step - this.warmStartStepCount;
    if (this.spec.kind !== 'relora' || t <= 0 || step >= this.stepCount) return 0;
    const { index, start } = this.cycleAt(t);
    return t === start ? index : 0;
  }

  get restartCount(): number {
    return this.restartCountUntil(this.stepCount);
  }

  /** Number of restarts before this step, including one right before it. */
  restartCountUntil(step: number): number {
    const t = Math.min(step, this.stepCount - 1) - this.warmStartStepCount;
    return this.spec.kind !== 'relora' || t <= 0 ? 0 : this.cycleAt(t).index;
  }

  /** Steps right before which there is a restart; only the first `restartsMax`. */
  restartSteps(restartsMax = Infinity): number[] {
    const steps: number[] = [];
    if (this.spec.kind !== 'relora') return steps;
    for (let t = 0, index = 0; ; index++) {
      if (steps.length >= restartsMax) return steps;
      t += cycleLength(this.cycles, index);
      if (t >= this.spec.stepCount) return steps;
      steps.push(this.warmStartStepCount + t);
    }
  }

  /**
   * Returns the step itself, or, if it is within a warm-up shorter than `warmupStepsMax` after a restart, the step after that warm-up (the
   * cycle's last step if the warm-up takes the whole cycle).
   */
  afterRestartWarmup(step: number, warmupStepsMax: number): number {
    const t = step - this.warmStartStepCount;
    if (this.spec.kind !== 'relora' || t < 0) return step;
    const stretch = this.stretchAt(step);
    const warmup = warmupOf(stretch, this.shape);
    if (stretch.cycleIndex === 0 || warmup >= warmupStepsMax) return step;
    const end = this.warmStartStepCount + stretch.start + Math.min(warmup, stretch.stepCount - 1);
    return Math.min(Math.max(step, end), this.stepCount - 1);
  }

  /** Whether any step trains all weights. */
  get hasFullRankSteps(): boolean {
    return this.spec.kind === 'fullRank' || this.warmStartStepCount > 0 || this.fullRankStepCountBetween > 0;
  }

  /** Number of full-rank steps between cycles, over the whole run. */
  get fullRankStepCountBetween(): number {
    const { restartCount } = this;
    const { fullRankStepCount } = this.cycles;
    if (restartCount === 0 || fullRankStepCount === 0) return 0;
    // Every cycle but the last is complete, and a complete one is longer than its full-rank steps.
    const last = this.cycleAt(this.spec.stepCount - 1);
    return (
      (restartCount - 1) * fullRankStepCount + Math.min(fullRankStepCount, this.spec.stepCount - last.start)
    );
  }

  /** Whether the job asks to omit this step. */
  omits(step: number): boolean {
    return this.spec.omittedSteps?.some(({ first, last }) => step >= first && step <= last) ?? false;
  }

  learningRateAt(step: number): number {
    const { learningRate, warmStart } = this.spec;
    const phase = this.phaseAt(step);
    if (phase === 'warmStart') {
      // The warm start is a phase of its own with a plain warm-up, so restarts need no shift (differs: docs/relora.md).
      return warmStart.learningRate * Math.min(1, (step + 1) / Math.max(1, warmStart.warmupStepCount));
    }
    const t = step - this.warmStartStepCount;
    const isBetween = phase === 'fullRank' && this.spec.kind === 'relora';
    return (isBetween ? warmStart.learningRate : learningRate.peak) * this.multiplierAt(t);
  }

  private cycleAt(t: number): Cycle {
    return (this.lastCycle = cycleAt(t, this.cycles, this.lastCycle));
  }

  private stretchAt(step: number): Stretch {
    const t = step - this.warmStartStepCount;
    return stretchAt(t, this.cycles, this.cycleAt(t));
  }

  private get shape(): ScheduleShape {
    const { warmupStepCount, minRatio } = this.spec.learningRate;
    return {
      stepCount: this.spec.stepCount,
      warmupStepCount,
      restartWarmupStepCount: this.spec.adapter?.restartWarmupStepCount ?? 0,
      minRatio,
      fullRankWarmup: this.spec.streams?.fullRankWarmup ?? 2,
      ...this.cycles,
    };
  }

  /** m(t) in the main phase. */
  private multiplierAt(t: number): number {
    const { schedule, warmupStepCount, minRatio } = this.spec.learningRate;
    const { shape } = this;
    switch (schedule) {
      case 'jaggedCosine':
        return jaggedCosine(t, shape, this.stretchAt(t + this.warmStartStepCount));
      case 'cosine':
        return cyclicalCosine(t, shape, this.stretchAt(t + this.warmStartStepCount));
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

function cyclesOf({ kind, adapter, stepCount }: ScheduledSpec): Required<CycleShape> {
  if (kind !== 'relora' || adapter === null)
    return { cycleStepCount: stepCount, cycleGrowth: 1, fullRankStepCount: 0 };
  const { cycleStepCount, cycleGrowth, fullRankStepCount } = adapter;
  return { cycleStepCount, cycleGrowth, fullRankStepCount };
}

/** Shape of a learning rate over the main phase; steps count from 0 within it. */
export interface ScheduleShape extends CycleShape {
  stepCount: number;
  warmupStepCount: number;
  restartWarmupStepCount: number;
  minRatio: number;
  /** StreamVersions.fullRankWarmup; default 2. */
  fullRankWarmup?: number;
}

/**
 * Fraction of the full-rank steps between cycles over which their rate rises: their moments start at zero as after a restart, whose default
 * warm-up is the same fraction of a cycle.
 */
const fullRankWarmupShare = 1 / 20;

function warmupOf({ isFullRank, stepCount }: Stretch, shape: ScheduleShape): number {
  if (!isFullRank) return shape.restartWarmupStepCount;
  const share = Math.floor(fullRankWarmupShare * stepCount);
  return shape.fullRankWarmup === 1 ? share : Math.min(Math.max(1, share), stepCount - 1);
}

/** One cosine over the whole run; after each restart the rate rises linearly from 0 to the cosine's value (arXiv 2307.05695). */
export function jaggedCosine(
  t: number,
  shape: ScheduleShape,
  stretch: Stretch = stretchAt(t, shape),
): number {
  const { stepCount, warmupStepCount, minRatio } = shape;
  const cosine = (u: number) =>
    minRatio +
    ((1 - minRatio) * (1 + Math.cos((Math.PI * (u - warmupStepCount)) / (stepCount - warmupStepCount)))) / 2;

  if (t < warmupStepCount) return t / Math.max(1, warmupStepCount);
  const warmup = warmupOf(stretch, shape);
  if (stretch.cycleIndex > 0 && t - stretch.start < warmup) {
    // A short last cycle may end within its warm-up; past the last step the cosine would rise again.
    const warmupEnd = Math.min(stretch.start + warmup, stepCount);
    return ((t - stretch.start) / Math.max(1, warmup)) * cosine(warmupEnd);
  }
  return cosine(t);
}

/** A whole cosine in every cycle, each with its own warm-up. */
export function cyclicalCosine(
  t: number,
  shape: ScheduleShape,
  stretch: Stretch = stretchAt(t, shape),
): number {
  const { minRatio } = shape;
  const warmup = stretch.cycleIndex === 0 ? shape.warmupStepCount : warmupOf(stretch, shape);
  const inStretch = t - stretch.start;
  if (inStretch < warmup) return inStretch / Math.max(1, warmup);
  const progress = (inStretch - warmup) / Math.max(1, stretch.stepCount - warmup);
  return minRatio + ((1 - minRatio) * (1 + Math.cos(Math.PI * progress))) / 2;
}
