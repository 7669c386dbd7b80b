import { joinSteps, type TrainingEvent } from '@relora/engine/plan';

type StepEvent = TrainingEvent & { kind: 'step' };

/** Ten step events a second show all that an eye can follow, and what each stands for is in its span. */
const intervalMs = 100;

/**
 * Sums up the steps of a fast run, so that it reports at most ten times a second. Spans end at multiples of a power of two, so
 * that the same steps are reported by themselves in a run that is repeated: their losses can be compared.
 */
export class StepReports {
  private waiting: StepEvent | null = null;
  private count = 0;
  private reportedMs = -Infinity;
  /** What the last step of the span has to be a multiple of; null until the time has come. */
  private multiple: number | null = null;

  constructor(private readonly everyStep: boolean) {}

  /** The events to report now; none while steps are gathered. */
  take(event: StepEvent, nowMs: number): StepEvent[] {
    // Steps that were omitted are reported apart from others.
    const before = this.waiting !== null && !this.waiting.omitted !== !event.omitted ? this.rest(nowMs) : [];
    this.waiting = this.waiting === null ? event : joinSteps(this.waiting, event);
    this.count++;
    // What is not as it should be is reported at once.
    if (this.everyStep || event.skipped) return [...before, ...this.rest(nowMs)];
    if (this.multiple === null && nowMs - this.reportedMs >= intervalMs)
      this.multiple = 2 ** Math.floor(Math.log2(this.count));
    const isDue = this.multiple !== null && (event.step + 1) % this.multiple === 0;
    return isDue ? [...before, ...this.rest(nowMs)] : before;
  }

  /** What was gathered, before anything else is reported. */
  rest(nowMs: number): StepEvent[] {
    const { waiting } = this;
    if (waiting === null) return [];
    this.waiting = this.multiple = null;
    this.count = 0;
    this.reportedMs = nowMs;
    return [waiting];
  }
}
