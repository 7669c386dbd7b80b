import type { JobEvent } from './job.js';

/**
 * Events kept in total, of which each job gets a share. A watcher that falls behind the kept ones reads the store by itself, at ten times
 * the cost, which makes hundreds of watchers fall behind further and further.
 */
const eventsTotalMax = 32_768;
/** Events kept per job at least: some seconds of the fastest run. */
const eventsMin = 2048;
/** Number of jobs whose events are kept: those that were watched last. */
const jobsMax = 64;

interface Tail {
  /** Without gaps; the last one has lastSequence. */
  events: JobEvent[];
  lastSequence: number;
  isComplete: boolean;
}

/**
 * The newest events of the watched jobs, so that hundreds of watchers of one job cost the store one read, and their events are parsed once.
 * It knows only what this process wrote, and forgets what it cannot be sure of.
 */
export class RecentEvents {
  private readonly tails = new Map<string, Tail>();
  /** Watched jobs whose tail begins with the next events. */
  private readonly awaited = new Set<string>();
  /** Rises with every change, so that a reader of the store knows whether its result is still the newest. */
  private heard = 0;

  /** Get this before reading the store, to pass it to `follow`. */
  get mark(): number {
    return this.heard;
  }

  /**
   * Keeps the events after the head that was read. If something was written meanwhile, it keeps the events from the next ones on: on a busy
   * server there is always something, and otherwise each watcher would read the store by itself.
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
    // With several connections to the store, commits are reported in no certain order.
    if (later[0]!.sequence !== tail.lastSequence + 1) return this.forget(jobId);
    for (const event of later) tail.events.push(event);
    const eventsMax = Math.max(eventsMin, Math.floor(eventsTotalMax / this.tails.size));
    // Seldom, because it copies what stays.
    if (tail.events.length > eventsMax + eventsMin) tail.events = tail.events.slice(-eventsMax);
    tail.lastSequence = later.at(-1)!.sequence;
    tail.isComplete = later.at(-1)!.final;
  }

  /** Called when another server wrote to the job; null: to any job. */
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

  /** Events after a sequence number; undefined if the store has to be read. */
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
