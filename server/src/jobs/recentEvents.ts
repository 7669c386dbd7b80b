import type { JobEvent } from './job.js';

/**
 * Events kept in all, of which each job has its share: a watcher that falls behind what is kept reads the store by itself, which costs
 * ten times as much, and then hundreds fall behind ever further.
 */
const eventsTotalMax = 32_768;
/** Events kept of a job at least: some seconds of the fastest run. */
const eventsMin = 2048;
/** Jobs of which they are kept: those that were watched last. */
const jobsMax = 64;

interface Tail {
  /** Without gaps, the last one with lastSequence. */
  events: JobEvent[];
  lastSequence: number;
  isComplete: boolean;
}

/**
 * The newest events of the jobs that are watched, so that hundreds of watchers of one job cost the store one read, and their
 * events are parsed once. It knows only what this process wrote: what it cannot be sure of, it forgets.
 */
export class RecentEvents {
  private readonly tails = new Map<string, Tail>();
  /** Jobs that are watched, whose tail begins with what is heard next. */
  private readonly awaited = new Set<string>();
  /** Rises with all that is heard, so that a read of the store knows whether it is still the newest. */
  private heard = 0;

  /** To be taken before a read of the store, for `follow`. */
  get mark(): number {
    return this.heard;
  }

  /**
   * Keeps what comes after the head that was read. Where something came meanwhile it keeps what comes next: on a busy server there is
   * always something, and each watcher would read the store by itself.
   */
  follow(jobId: string, head: { lastSequence: number; isComplete: boolean }, mark: number): void {
    if (this.tails.has(jobId)) return;
    if (mark === this.heard) return this.begin(jobId, { events: [], ...head });
    if (this.awaited.size >= jobsMax) this.awaited.delete(this.awaited.values().next().value!);
    this.awaited.add(jobId);
  }

  /** Called after every commit of a job. */
  append(jobId: string, events: readonly JobEvent[]): void {
    this.heard++;
    if (this.awaited.has(jobId) && events.length > 0) {
      const { sequence, final } = events.at(-1)!;
      this.begin(jobId, { events: [...events], lastSequence: sequence, isComplete: final });
      return;
    }
    const tail = this.tails.get(jobId);
    if (tail === undefined) return;
    const later = events.filter(({ sequence }) => sequence > tail.lastSequence);
    if (later.length === 0) return;
    // Commits are heard of in no certain order where the store has several connections.
    if (later[0]!.sequence !== tail.lastSequence + 1) return this.forget(jobId);
    for (const event of later) tail.events.push(event);
    const eventsMax = Math.max(eventsMin, Math.floor(eventsTotalMax / this.tails.size));
    // Seldom, since it copies what stays.
    if (tail.events.length > eventsMax + eventsMin) tail.events = tail.events.slice(-eventsMax);
    tail.lastSequence = later.at(-1)!.sequence;
    tail.isComplete = later.at(-1)!.final;
  }

  /** Another server wrote of the job; null: of any. */
  forget(jobId: string | null): void {
    this.heard++;
    for (const known of [this.tails, this.awaited])
      if (jobId === null) known.clear();
      else known.delete(jobId);
  }

  private begin(jobId: string, tail: Tail): void {
    this.awaited.delete(jobId);
    if (this.tails.size >= jobsMax) this.tails.delete(this.tails.keys().next().value!);
    this.tails.set(jobId, tail);
  }

  /** Events above a sequence number; undefined where the store has to be asked. */
  after(
    jobId: string,
    sequence: number,
    countMax: number,
  ): { events: JobEvent[]; isComplete: boolean } | undefined {
    const tail = this.tails.get(jobId);
    if (tail === undefined) return undefined;
    const missing = tail.lastSequence - sequence;
    if (missing > tail.events.length) return undefined;
    const start = tail.events.length - Math.max(0, missing);
    const events = tail.events.slice(start, start + countMax);
    return { events, isComplete: tail.isComplete && missing <= countMax };
  }
}
