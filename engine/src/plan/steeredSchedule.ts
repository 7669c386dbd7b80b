import type { Phase, RunSpec } from './runSpec.js';
import type { RunChange, RunUpdate } from './runUpdate.js';
import { Schedule } from './schedule.js';

interface Stretch {
  /** First step that it applies to. */
  from: number;
  schedule: Schedule;
  /** Multiplies the learning rate. */
  factor: number;
}

/**
 * The schedule of a run that can be changed while it runs. Steps before a change are unaffected; from its step on, a new step count is used
 * in the same formula, and a factor multiplies the rate, warm-ups after restarts included.
 */
export class SteeredSchedule {
  private readonly stretches: Stretch[];
  /** Step before which the run ends early; null: it does not. */
  private end: number | null = null;

  constructor(private spec: RunSpec) {
    this.stretches = [{ from: 0, schedule: new Schedule(spec), factor: 1 }];
  }

  /** Applies a change from a step on. */
  change(step: number, { stepCount, learningRateFactor }: RunChange): void {
    if (stepCount === undefined && learningRateFactor === undefined) return;
    const last = this.last;
    if (stepCount !== undefined) this.spec = withStepCount(this.spec, stepCount);
    this.stretches.push({
      from: step,
      schedule: stepCount === undefined ? last.schedule : new Schedule(this.spec),
      factor: learningRateFactor ?? last.factor,
    });
  }

  /** In all phases. A run that is already past a smaller number ends where it is. */
  get stepCount(): number {
    return this.end ?? this.plannedStepCount;
  }

  /** Ends the run before a step. */
  endAt(step: number): void {
    this.end = step;
  }

  /** Whether the run ends for another reason than its number of steps. */
  get endsEarly(): boolean {
    return this.end !== null;
  }

  private get plannedStepCount(): number {
    return this.stretches.reduce((before, { from, schedule }, index) => {
      const total = Math.max(from, schedule.stepCount);
      return index === 0 ? total : schedule === this.stretches[index - 1]!.schedule ? before : total;
    }, 0);
  }

  get factor(): number {
    return this.last.factor;
  }

  phaseAt(step: number): Phase {
    return this.at(step).schedule.phaseAt(step);
  }

  beginsAdapters(step: number): boolean {
    return this.phaseAt(step) === 'adapter' && (step === 0 || this.phaseAt(step - 1) !== 'adapter');
  }

  restartNumberAt(step: number): number {
    return this.at(step).schedule.restartNumberAt(step);
  }

  omits(step: number): boolean {
    return this.at(step).schedule.omits(step);
  }

  learningRateAt(step: number): number {
    const { schedule, factor } = this.at(step);
    // Without a change, exactly the value of the formula.
    return factor === 1 ? schedule.learningRateAt(step) : factor * schedule.learningRateAt(step);
  }

  private get last(): Stretch {
    return this.stretches.at(-1)!;
  }

  private at(step: number): Stretch {
    return this.stretches.findLast(({ from }) => from <= step) ?? this.stretches[0]!;
  }
}

/** The specification of a new run that continues like this one with its changes; without the rate factor, which is not part of it. */
export function specAfter(spec: RunSpec, updates: readonly RunUpdate[]): RunSpec {
  return updates.reduce(
    (before, { change: { stepCount, evaluation, checkpoint, sample } }) => ({
      ...(stepCount === undefined ? before : withStepCount(before, stepCount)),
      evaluation: { ...before.evaluation, ...evaluation },
      checkpoint: { ...before.checkpoint, ...checkpoint },
      sample: { ...before.sample, ...sample },
    }),
    spec,
  );
}

/** The one cycle of LORA is as long as its run. */
function withStepCount(spec: RunSpec, stepCount: number): RunSpec {
  const adapter =
    spec.kind === 'lora' && spec.adapter !== null
      ? { ...spec.adapter, cycleStepCount: stepCount }
      : spec.adapter;
  return { ...spec, stepCount, adapter };
}
