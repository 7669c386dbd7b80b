import type { JobEvent } from '../jobs/job.js';

/**
 * An event to send, and the number of step events since the previous one that are not sent separately: those omitted, and those that it
 * summarizes.
 */
export interface ThinnedEvent {
  event: JobEvent;
  omittedCount: number;
}

/**
 * Lets at most one step event per interval through, for a watcher that asked for it. The newest one waits until its interval is over or an
 * event of another kind comes, so the stream stays in order and never ends on an old step.
 */
export class StepThinner {
  private waiting: JobEvent | undefined;
  private omittedCount = 0;
  private nextMs = -Infinity;

  constructor(private readonly intervalMs: number) {}

  /** What to send now that an event was read. */
  take(event: JobEvent, nowMs: number): ThinnedEvent[] {
    if (event.body.kind !== 'step' || this.intervalMs === 0)
      return [...this.rest(nowMs), { event, omittedCount: event.sequence - event.firstSequence }];
    // Not sent before everything available was read: a newer step may follow at once.
    if (this.waiting !== undefined) this.omittedCount++;
    this.omittedCount += event.sequence - event.firstSequence;
    this.waiting = event;
    return [];
  }

  /** The waiting step, whether or not its time has come. */
  rest(nowMs: number): ThinnedEvent[] {
    if (this.waiting === undefined) return [];
    const sent = { event: this.waiting, omittedCount: this.omittedCount };
    this.waiting = undefined;
    this.omittedCount = 0;
    this.nextMs = nowMs + this.intervalMs;
    return [sent];
  }

  /** Milliseconds until the waiting step is to be sent; undefined if there is none. */
  waitMs(nowMs: number): number | undefined {
    return this.waiting === undefined ? undefined : Math.max(0, this.nextMs - nowMs);
  }
}
