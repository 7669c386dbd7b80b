import type { RunSpec } from '../plan/runSpec.js';
import type { RunUpdate } from '../plan/runUpdate.js';
import { SteeredSchedule } from '../plan/steeredSchedule.js';

/** What a run does beside its steps. */
export type Duty = 'evaluation' | 'checkpoint' | 'sample';
interface Cadence {
  everyStepCount: number;
  everySeconds: number;
}

export interface SteeringOptions {
  /** In the order of their numbers; those that have a step are repeated at it. */
  updates?: readonly RunUpdate[] | undefined;
  /** Number of the last update that a checkpoint holds already. */
  updateNumber?: number;
  /** When each duty was done last, milliseconds since 1970; by default now. */
  doneMs?: Partial<Record<Duty, number>> | undefined;
  now?: (() => number) | undefined;
}

/** What of a run may change while it runs: its schedule and when its duties are due. */
export class Steering {
  readonly schedule: SteeredSchedule;
  private readonly cadences: Record<Duty, Cadence>;
  private readonly waiting: RunUpdate[] = [];
  private readonly now: () => number;
  /** Outlives the process, so that a run that is killed more often than a duty is due still does it. */
  readonly doneMs: Record<Duty, number>;

  constructor(spec: RunSpec, { updates = [], updateNumber = 0, doneMs, now = Date.now }: SteeringOptions) {
    this.schedule = new SteeredSchedule(spec);
    const { evaluation, checkpoint, sample } = spec;
    this.cadences = { evaluation: { ...evaluation }, checkpoint: { ...checkpoint }, sample: { ...sample } };
    this.now = now;
    const startMs = now();
    this.doneMs = { evaluation: startMs, checkpoint: startMs, sample: startMs, ...doneMs };
    for (const update of updates)
      if (update.number > updateNumber) this.waiting.push(update);
      else this.apply(update, update.step ?? 0);
  }

  /** Takes an update that came while the run runs. */
  add(update: RunUpdate): void {
    if (!this.waiting.some(({ number }) => number === update.number)) this.waiting.push(update);
  }

  /** The next update that holds from this step on, which is applied; undefined for none. In the order of their numbers. */
  applyNext(step: number): UpdateReport | undefined {
    const next = this.waiting[0];
    if (next === undefined || (next.step ?? step) > step) return undefined;
    this.waiting.shift();
    const { schedule } = this;
    const learningRateBefore = schedule.learningRateAt(step);
    this.apply(next, step);
    return {
      number: next.number,
      step,
      learningRateFactor: schedule.factor,
      stepCount: schedule.stepCount,
      learningRateBefore,
      learningRateAfter: schedule.learningRateAt(step),
    };
  }

  /** Whether a duty is due before a step: after so many steps, or after so much time. Not before the first step. */
  isDue(duty: Duty, step: number): boolean {
    const { everyStepCount, everySeconds } = this.cadences[duty];
    if (step === 0) return false;
    if (everyStepCount > 0 && step % everyStepCount === 0) return true;
    return everySeconds > 0 && this.now() - this.doneMs[duty] >= 1000 * everySeconds;
  }

  /** Whether it is ever done. */
  isWanted(duty: Duty): boolean {
    const { everyStepCount, everySeconds } = this.cadences[duty];
    return everyStepCount > 0 || everySeconds > 0;
  }

  done(duty: Duty): void {
    this.doneMs[duty] = this.now();
  }

  private apply({ change }: RunUpdate, step: number): void {
    this.schedule.change(step, change);
    for (const duty of ['evaluation', 'checkpoint', 'sample'] as const) {
      const { everyStepCount, everySeconds } = change[duty] ?? {};
      if (everyStepCount !== undefined) this.cadences[duty].everyStepCount = everyStepCount;
      if (everySeconds !== undefined) this.cadences[duty].everySeconds = everySeconds;
    }
  }
}

export interface UpdateReport {
  number: number;
  step: number;
  learningRateFactor: number;
  stepCount: number;
  learningRateBefore: number;
  learningRateAfter: number;
}
