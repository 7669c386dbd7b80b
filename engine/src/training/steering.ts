import type { RunSpec } from '../plan/runSpec.js';
import type { RunUpdate } from '../plan/runUpdate.js';
import { SteeredSchedule } from '../plan/steeredSchedule.js';
import { reasonToStop, type StopReport } from './earlyStop.js';
import type { RunProgress } from './trainingRun.js';

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
  /** When the job began, milliseconds since 1970; by default now. */
  startMs?: number;
  /** That earlier attempts held the device. */
  deviceSeconds?: number;
  /** Where an earlier attempt ended the run, whose last steps this one repeats; null or absent where none did. */
  stopStep?: number | null;
}

/** What of a run may change while it runs: its schedule and when its duties are due. */
export class Steering {
  readonly schedule: SteeredSchedule;
  private readonly cadences: Record<Duty, Cadence>;
  private readonly waiting: RunUpdate[] = [];
  private readonly now: () => number;
  /** Outlives the process, so that a run that is killed more often than a duty is due still does it. */
  readonly doneMs: Record<Duty, number>;
  private readonly startMs: number;
  private readonly beganMs: number;
  private readonly earlierDeviceSeconds: number;
  private isStopRequested = false;

  constructor(
    private readonly spec: RunSpec,
    {
      updates = [],
      updateNumber = 0,
      doneMs,
      now = Date.now,
      startMs,
      deviceSeconds = 0,
      stopStep = null,
    }: SteeringOptions,
  ) {
    this.schedule = new SteeredSchedule(spec);
    const { evaluation, checkpoint, sample } = spec;
    this.cadences = { evaluation: { ...evaluation }, checkpoint: { ...checkpoint }, sample: { ...sample } };
    this.now = now;
    const nowMs = now();
    this.doneMs = { evaluation: nowMs, checkpoint: nowMs, sample: nowMs, ...doneMs };
    this.startMs = startMs ?? nowMs;
    this.beganMs = nowMs;
    this.earlierDeviceSeconds = deviceSeconds;
    if (stopStep !== null) this.schedule.endAt(stopStep);
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

  /**
   * Ends the run before this step where a setting or a request says so, and answers which; null where none does, or where the end is
   * known already.
   */
  stopAt(step: number, { heldOut, trainedTokens }: RunProgress): StopReport | null {
    if (this.schedule.endsEarly) return null;
    const nowMs = this.now();
    const report = reasonToStop(this.spec, {
      heldOut,
      trainedTokens,
      seconds: (nowMs - this.startMs) / 1000,
      deviceSeconds: this.earlierDeviceSeconds + (nowMs - this.beganMs) / 1000,
      isRequested: this.isStopRequested,
    });
    if (report !== null) this.schedule.endAt(step);
    return report;
  }

  private apply({ change }: RunUpdate, step: number): void {
    this.schedule.change(step, change);
    this.isStopRequested ||= change.stop === true;
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
