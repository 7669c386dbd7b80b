import type { RunSpec } from '../plan/runSpec.js';
import type { RunUpdate } from '../plan/runUpdate.js';
import { SteeredSchedule } from '../plan/steeredSchedule.js';
import { reasonToStop, type StopReport } from './earlyStop.js';
import type { RunProgress } from './trainingRun.js';

/** What a run does besides its steps; each evaluation that the job names is a duty of its own. */
export type Duty = SteeredDuty | `evaluation ${string}`;
type SteeredDuty = (typeof steeredDuties)[number];
const steeredDuties = ['evaluation', 'checkpoint', 'sample'] as const;

export function namedDuty(name: string): Duty {
  return `evaluation ${name}`;
}

interface Cadence {
  everyStepCount: number;
  everySeconds: number;
}

export interface SteeringOptions {
  /** In the order of their numbers; those that have a step are replayed at it. */
  updates?: readonly RunUpdate[] | undefined;
  /** The highest number of an update that the checkpoint already includes. */
  updateNumber?: number;
  /** Numbers below it of updates that the checkpoint does not include, since they are due later. */
  laterUpdates?: readonly number[];
  /** When each duty was last done, milliseconds since 1970; default: when the job began. */
  doneMs?: Partial<Record<Duty, number>> | undefined;
  /** Whether the run continues from a checkpoint. */
  isResumed?: boolean;
  now?: (() => number) | undefined;
  /** When the job began, milliseconds since 1970; by default now. */
  startMs?: number;
  /** Total seconds for which the processes of earlier attempts held their device. */
  deviceSeconds?: number;
  /** Number of processes that train together now, each in a slot of its own; default 1. */
  processes?: number;
  /** Step at which an earlier attempt ended the run, if this one repeats its last steps; null or absent if none did. */
  stopStep?: number | null;
}

/**
 * A resumed run saves its first checkpoint after this fraction of the interval, and doubles the fraction each time: a run that was killed
 * once may be killed often, but a checkpoint right after resuming would save nothing.
 */
const firstShare = 1 / 16;

/** The parts of a run that can change while it runs: its schedule and when its duties are due. */
export class Steering {
  readonly schedule: SteeredSchedule;
  private readonly cadences = new Map<Duty, Cadence>();
  /** In the order of their numbers. */
  private readonly waiting: RunUpdate[];
  private updateNumber: number;
  /** Number of the update that set a value, by the value's name. */
  private readonly setBy = new Map<string, number>();
  private readonly now: () => number;
  /** Outlives the process, so that a duty is done even if the run is killed more often than it is due. */
  readonly doneMs: Partial<Record<Duty, number>>;
  private readonly startMs: number;
  private readonly beganMs: number;
  private readonly earlierDeviceSeconds: number;
  private readonly processes: number;
  private isStopRequested = false;
  /** Step before which duties were last decided; null before the first decision. */
  private decidedStep: number | null = null;
  /** Fraction of the interval between checkpoints after which the next one is due. */
  private checkpointShare: number;

  constructor(
    private readonly spec: RunSpec,
    {
      updates = [],
      updateNumber = 0,
      laterUpdates = [],
      doneMs,
      isResumed = false,
      now = Date.now,
      startMs,
      deviceSeconds = 0,
      processes = 1,
      stopStep = null,
    }: SteeringOptions,
  ) {
    this.schedule = new SteeredSchedule(spec);
    for (const duty of steeredDuties) this.cadences.set(duty, { ...spec[duty] });
    for (const named of spec.evaluations) this.cadences.set(namedDuty(named.name), named);
    this.now = now;
    const nowMs = now();
    this.startMs = startMs ?? nowMs;
    const { startMs: begunMs } = this;
    const neverDone = Object.fromEntries([...this.cadences.keys()].map((duty) => [duty, begunMs]));
    this.doneMs = { ...neverDone, ...doneMs };
    this.beganMs = nowMs;
    this.checkpointShare = isResumed ? firstShare : 1;
    this.earlierDeviceSeconds = deviceSeconds;
    this.processes = processes;
    if (stopStep !== null) this.schedule.endAt(stopStep);
    this.updateNumber = updateNumber;
    const isBehind = ({ number }: RunUpdate): boolean =>
      number <= updateNumber && !laterUpdates.includes(number);
    this.waiting = updates.filter((update) => !isBehind(update));
    const stepOf = ({ step }: RunUpdate): number => step ?? 0;
    // As they were applied: by step, and of one step by number.
    for (const update of updates.filter(isBehind).sort((one, other) => stepOf(one) - stepOf(other)))
      this.apply(update, stepOf(update));
  }

  /** Adds an update that arrived while the run is under way. */
  add(update: RunUpdate): void {
    if (!this.waiting.some(({ number }) => number === update.number)) this.waiting.push(update);
  }

  /** Applies the first update that takes effect by this step; undefined if there is none. Those that are due later do not delay it. */
  applyNext(step: number): { update: RunUpdate; report: UpdateReport } | undefined {
    const index = this.waiting.findIndex((update) => (update.step ?? step) <= step);
    const next = this.waiting[index];
    if (next === undefined) return undefined;
    this.waiting.splice(index, 1);
    this.updateNumber = Math.max(this.updateNumber, next.number);
    const { schedule } = this;
    const learningRateBefore = schedule.learningRateAt(step);
    this.apply(next, step);
    const report = {
      number: next.number,
      step,
      learningRateFactor: schedule.factor,
      stepCount: schedule.stepCount,
      learningRateBefore,
      learningRateAfter: schedule.learningRateAt(step),
    };
    return { update: next, report };
  }

  /** Which updates were applied, for checkpoints. */
  get applied(): { updateNumber: number; laterUpdates: readonly number[] } {
    const { updateNumber } = this;
    const later = this.waiting.filter(({ number }) => number < updateNumber);
    return { updateNumber, laterUpdates: later.map(({ number }) => number) };
  }

  /**
   * Whether a duty is due before a step, by steps or by time; never before the first step. A duty that became due before steps at which
   * nothing could be done is due now.
   */
  isDue(duty: Duty, step: number): boolean {
    const { everyStepCount, everySeconds } = this.cadenceOf(duty);
    if (step === 0) return false;
    const decided = Math.min(this.decidedStep ?? step, step - 1);
    if (everyStepCount > 0 && Math.floor(step / everyStepCount) > Math.floor(decided / everyStepCount))
      return true;
    if (everySeconds === 0) return false;
    const doneMs = this.doneMs[duty] ?? this.startMs;
    const [sinceMs, share] =
      duty === 'checkpoint' && this.checkpointShare < 1
        ? [Math.max(this.beganMs, doneMs), this.checkpointShare]
        : [doneMs, 1];
    return this.now() - sinceMs >= 1000 * everySeconds * share;
  }

  /** Whether the duty is done at all. */
  isWanted(duty: Duty): boolean {
    const { everyStepCount, everySeconds } = this.cadenceOf(duty);
    return everyStepCount > 0 || everySeconds > 0;
  }

  /** Records that everything due before this step is done. */
  decided(step: number): void {
    this.decidedStep = step;
  }

  done(duty: Duty): void {
    this.doneMs[duty] = this.now();
    if (duty === 'checkpoint') this.checkpointShare = Math.min(1, 2 * this.checkpointShare);
  }

  /**
   * Ends the run before this step if a setting or a request says so, and returns which; null if none does, or if the end is already
   * decided.
   */
  stopAt(step: number, { heldOut, trainedTokens }: RunProgress): StopReport | null {
    if (this.schedule.endsEarly) return null;
    const nowMs = this.now();
    const report = reasonToStop(this.spec, {
      heldOut,
      trainedTokens,
      seconds: (nowMs - this.startMs) / 1000,
      deviceSeconds: this.earlierDeviceSeconds + ((nowMs - this.beganMs) / 1000) * this.processes,
      isRequested: this.isStopRequested,
    });
    if (report !== null) this.schedule.endAt(step);
    return report;
  }

  /**
   * Sets what the update changes, except values that an update with a higher number has set: it was asked for later, by somebody who could
   * know this one, so it stays although this one was due only now. Which value holds at a step thus depends only on numbers and steps,
   * which a resumed run repeats.
   */
  private apply({ number, change }: RunUpdate, step: number): void {
    const newest = (name: string, value: number | undefined): number | undefined => {
      if (value === undefined || number < (this.setBy.get(name) ?? 0)) return undefined;
      this.setBy.set(name, number);
      return value;
    };
    this.schedule.change(step, {
      stepCount: newest('stepCount', change.stepCount),
      learningRateFactor: newest('learningRateFactor', change.learningRateFactor),
    });
    this.isStopRequested ||= change.stop === true;
    for (const duty of steeredDuties) {
      const cadence = this.cadenceOf(duty);
      for (const key of ['everyStepCount', 'everySeconds'] as const)
        cadence[key] = newest(`${duty}.${key}`, change[duty]?.[key]) ?? cadence[key];
    }
  }

  private cadenceOf(duty: Duty): Cadence {
    const found = this.cadences.get(duty);
    if (found === undefined) throw new RangeError(`The run has no duty ${duty}`);
    return found;
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
