import type { JobEvent } from '../jobs/job.js';

/** An event to send, and how many step events since the one before it are not sent by themselves: those that were left out, and those that it stands for. */
export interface ThinnedEvent {
  event: JobEvent;
  omittedCount: number;
}

/**
 * Lets at most one step event through in a time, for a watcher that asked for it. The newest one waits until its time comes or
 * an event of another kind does, so that the stream stays in order and never rests on an old step.
 */
export class StepThinner {
  private waiting: JobEvent | undefined;
  private omittedCount = 0;
  private nextMs = -Infinity;

  constructor(private readonly intervalMs: number) {}

  /** What is to be sent now that an event was read. */
  take(event: JobEvent, nowMs: number): ThinnedEvent[] {
    if (event.body.kind !== 'step' || this.intervalMs === 0)
      return [...this.rest(nowMs), { event, omittedCount: event.sequence - event.firstSequence }];
    // Sent once all that is there was read: a newer one may follow at once.
    if (this.waiting !== undefined) this.omittedCount++;
    this.omittedCount += event.sequence - event.firstSequence;
    this.waiting = event;
    return [];
  }

  /** The step that waits, whether or not its time has come. */
  rest(nowMs: number): ThinnedEvent[] {
    if (this.waiting === undefined) return [];
    const sent = { event: this.waiting, omittedCount: this.omittedCount };
    this.waiting = undefined;
    this.omittedCount = 0;
    this.nextMs = nowMs + this.intervalMs;
    return [sent];
  }

  /** Milliseconds until the step that waits is to be sent; undefined when none does. */
  waitMs(nowMs: number): number | undefined {
    return this.waiting === undefined ? undefined : Math.max(0, this.nextMs - nowMs);
  }
}
