import { joinSteps, type TrainingEvent } from '@relora/engine/plan';

type StepEvent = TrainingEvent & { kind: 'step' };

/** Ten step events per second are as many as the eye can follow; each has a span with all the steps that it stands for. */
const intervalMs = 100;

/**
 * Sums the steps of a fast run, so that it reports at most ten times per second. Spans end at multiples of a power of two, so that a
 * repeated run reports the same steps, whose losses can be compared.
 */
export class StepReports {
  private waiting: StepEvent | null = null;
  private count = 0;
  private reportedMs = -Infinity;
  /** The last step of the span must be a multiple of this; null until it is time to report. */
  private multiple: number | null = null;

  constructor(private readonly everyStep: boolean) {}

  /** The events to report now; none while steps are gathered. */
  take(event: StepEvent, nowMs: number): StepEvent[] {
    // Omitted steps are reported separately from others.
    const before = this.waiting !== null && !this.waiting.omitted !== !event.omitted ? this.rest(nowMs) : [];
    this.waiting = this.waiting === null ? event : joinSteps(this.waiting, event);
    this.count++;
    // A skipped step is reported at once.
    if (this.everyStep || event.skipped) return [...before, ...this.rest(nowMs)];
    if (this.multiple === null && nowMs - this.reportedMs >= intervalMs)
      this.multiple = 2 ** Math.floor(Math.log2(this.count));
    const isDue = this.multiple !== null && (event.step + 1) % this.multiple === 0;
    return isDue ? [...before, ...this.rest(nowMs)] : before;
  }

  /** Returns the gathered steps. Call it before anything else is reported. */
  rest(nowMs: number): StepEvent[] {
    const { waiting } = this;
    if (waiting === null) return [];
    this.waiting = this.multiple = null;
    this.count = 0;
    this.reportedMs = nowMs;
    return [waiting];
  }
}
