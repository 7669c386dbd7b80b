import type { WatchJobsRequest, WatchJobsResponse } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import { isTerminal } from '../jobs/job.js';
import type { WatchedJob } from '../jobs/jobStore.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { nameOf } from '../store/tenantIds.js';
import { parseJobName } from './resourceNames.js';
import { StepThinner, type ThinnedEvent } from './thinSteps.js';
import { toEvent } from './toProto.js';

const namesMax = 500;
/** Limit of a cursor with thousands of unfinished jobs. */
const cursorCharactersMax = 1_000_000;
const cursorMs = 5000;
const cursorEvents = 1000;
const pageEvents = 256;
/** How often unknown jobs are looked up at most, however many other jobs of the server change. */
const lookMs = 500;
/** A transaction that creates a job takes less: a job that was created longer ago is visible by now or never will be. */
const settledMs = 120_000;

/** How far a stream has come. */
interface Place {
  /** Jobs that were created until then have been sent completely, or are listed in `sent`. */
  settledUntilMs: number;
  /** The last event that was sent, by job id. */
  sent: Record<string, number>;
}

interface Watched {
  createTimeMs: number;
  /** Read, and sent: they differ by a step that waits for its time. */
  readSequence: number;
  sentSequence: number;
  isDone: boolean;
  steps: StepThinner;
}

interface Wish {
  tenant: string;
  /** Null: all jobs with the labels. */
  jobIds: string[] | null;
  labels: Record<string, string>;
  place: Place | null;
  skipPast: boolean;
  untilAllEnded: boolean;
  stepIntervalMs: number;
}

type WatchParts = Pick<ApiParts, 'config' | 'store' | 'journal' | 'pageTokens' | 'identity' | 'stopping'>;

/** Checks the request and returns the stream; throws before the stream begins. */
export async function watchJobs(
  parts: WatchParts,
  request: WatchJobsRequest,
  tenant: string,
  signal: AbortSignal,
): Promise<AsyncGenerator<WatchJobsResponse>> {
  const checks = new FieldChecks();
  checks.count('names', request.names, namesMax);
  checks.integer('step_interval_ms', request.stepIntervalMs, 0, 0, 60_000);
  const labels = checks.labels('labels', request.labels);
  checks.throwIfWrong();
  const jobIds = [
    ...new Set(request.names.map((name, index) => parseJobName(tenant, `names[${index}]`, name))),
  ];
  const names = [...new Set(request.names)].sort();
  const subject = { stream: 'jobs', tenant, names, labels: Object.entries(labels).sort() };
  const place = readCursor(parts, subject, request.cursor, checks);
  for (const jobId of jobIds) await requireJob(parts.store, jobId);
  const { skipPast, untilAllEnded, stepIntervalMs } = request;
  const wish = {
    tenant,
    jobIds: jobIds.length > 0 ? jobIds : null,
    labels,
    place,
    skipPast,
    untilAllEnded,
    stepIntervalMs,
  };
  return new JobsWatch(parts, wish, subject).stream(signal);
}

function readCursor(
  { pageTokens, identity }: WatchParts,
  subject: object,
  cursor: string,
  checks: FieldChecks,
): Place | null {
  if (cursor === '') return null;
  const dot = cursor.indexOf('.');
  const storeId = cursor.slice(0, Math.max(0, dot));
  if (/^[0-9a-f-]{32,36}$/.test(storeId) && storeId !== identity.id)
    throw new ServiceError('STORE_CHANGED', { storeId: identity.id });
  const place = pageTokens.open<Place>(subject, cursor.slice(dot + 1), cursorCharactersMax);
  if (place === undefined)
    checks.add('cursor', 'one that WatchJobs gave for the same names and labels', cursor.slice(0, 64));
  checks.throwIfWrong();
  return place ?? null;
}

/** One watch of many jobs. It keeps a position in each journal but no events, so a client that does not read costs no more. */
class JobsWatch {
  private readonly jobs = new Map<string, Watched>();
  /** Known jobs that may have news. */
  private readonly changed = new Set<string>();
  /** Jobs that may match but were not looked up yet. */
  private readonly unknown = new Set<string>();
  private isAnyChanged = true;
  private wake = (): void => {};
  private settledUntilMs: number;
  private lookedAtMs = -Infinity;
  private cursorAtMs = -Infinity;
  private eventsSinceCursor = 0;
  private isBegun = false;
  private readonly storeId: string;

  constructor(
    private readonly parts: WatchParts,
    private readonly wish: Wish,
    private readonly subject: object,
  ) {
    this.settledUntilMs = wish.place?.settledUntilMs ?? -1;
    this.storeId = parts.identity.id;
  }

  async *stream(signal: AbortSignal): AsyncGenerator<WatchJobsResponse> {
    const { journal, stopping } = this.parts;
    // Listens before the first look, so a change between the two is found by the next look.
    const stopListening = journal.onChanged((jobId) => {
      if (jobId === null) this.isAnyChanged = true;
      else if (this.jobs.has(jobId)) this.changed.add(jobId);
      else this.unknown.add(jobId);
      this.wake();
    });
    const end = (): void => this.wake();
    signal.addEventListener('abort', end);
    stopping.addEventListener('abort', end);
    const check = (): void => {
      if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
      if (stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
      if (this.storeId !== this.parts.identity.id)
        throw new ServiceError('STORE_CHANGED', { storeId: this.parts.identity.id });
    };
    try {
      for (;;) {
        check();
        await this.look();
        if (!this.isBegun) {
          this.isBegun = true;
          yield this.cursor();
        }
        for (const jobId of this.changed)
          for await (const message of this.read(jobId)) {
            yield message;
            if (this.eventsSinceCursor >= cursorEvents) yield this.cursor();
            check();
          }
        yield* this.dueSteps();
        if (this.changed.size > 0 || this.isAnyChanged) continue;
        if (this.wish.untilAllEnded && this.unknown.size === 0 && this.isAllDone) {
          if (this.eventsSinceCursor > 0) yield this.cursor();
          return;
        }
        if (performance.now() - this.cursorAtMs >= this.cursorEveryMs) yield this.cursor();
        await this.sleep(signal);
      }
    } finally {
      stopListening();
      signal.removeEventListener('abort', end);
      stopping.removeEventListener('abort', end);
    }
  }

  private get cursorEveryMs(): number {
    const heartbeatMs = this.parts.config.heartbeatSeconds * 1000;
    return this.eventsSinceCursor > 0 ? Math.min(cursorMs, heartbeatMs) : heartbeatMs;
  }

  private get isAllDone(): boolean {
    for (const { isDone } of this.jobs.values()) if (!isDone) return false;
    return true;
  }

  /** Looks up jobs that it does not know yet; if changes may have been missed, also the known ones. */
  private async look(): Promise<void> {
    const isLookedFor = this.unknown.size > 0 && performance.now() - this.lookedAtMs >= lookMs;
    if (!this.isAnyChanged && !isLookedFor) return;
    this.lookedAtMs = performance.now();
    const { tenant, jobIds, labels, place } = this.wish;
    const wasAny = this.isAnyChanged;
    this.isAnyChanged = false;
    this.unknown.clear();
    const found = await this.parts.store.watched({
      tenant,
      jobIds,
      labels,
      createdAfterMs: this.settledUntilMs,
    });
    // Jobs of the cursor may have ended or lost their labels since, and still have events that were not sent.
    const sent = this.isBegun ? [] : Object.keys(place?.sent ?? {});
    for (const job of [...found, ...(await this.parts.store.watchedOf(tenant, sent))])
      if (!this.jobs.has(job.id)) this.admit(job);
    if (!wasAny) return;
    const open = [...this.jobs].filter(([, { isDone }]) => !isDone).map(([id]) => id);
    for (const { id, lastSequence } of await this.parts.store.lastSequences(open))
      if (lastSequence > this.jobs.get(id)!.readSequence) this.changed.add(id);
  }

  private admit(job: WatchedJob): void {
    const { place, skipPast, stepIntervalMs } = this.wish;
    const isPast = place === null && skipPast && !this.isBegun;
    const sequence = isPast ? job.lastSequence : (place?.sent[job.id] ?? 0);
    const isDone = isTerminal(job.state) && sequence >= job.lastSequence;
    this.jobs.set(job.id, {
      createTimeMs: job.createTimeMs,
      readSequence: sequence,
      sentSequence: sequence,
      isDone,
      steps: new StepThinner(stepIntervalMs),
    });
    if (!isDone) this.changed.add(job.id);
  }

  /** Sends what is new of a job. Jobs are read to their end one after the other, so that few are half read. */
  private async *read(jobId: string): AsyncGenerator<WatchJobsResponse> {
    const job = this.jobs.get(jobId)!;
    for (;;) {
      this.changed.delete(jobId);
      const { events, isComplete } = await this.parts.journal.readAfter(jobId, job.readSequence, pageEvents);
      for (const event of events) {
        job.readSequence = event.sequence;
        for (const thinned of job.steps.take(event, performance.now()))
          yield this.toResponse(jobId, job, thinned);
      }
      if (isComplete)
        for (const thinned of job.steps.rest(performance.now())) yield this.toResponse(jobId, job, thinned);
      job.isDone = isComplete;
      if (isComplete || events.length < pageEvents) return;
    }
  }

  private *dueSteps(): Generator<WatchJobsResponse> {
    if (this.wish.stepIntervalMs === 0) return;
    const nowMs = performance.now();
    for (const [jobId, job] of this.jobs) {
      if (job.steps.waitMs(nowMs) !== 0) continue;
      for (const thinned of job.steps.rest(nowMs)) yield this.toResponse(jobId, job, thinned);
    }
  }

  private toResponse(jobId: string, job: Watched, { event, omittedCount }: ThinnedEvent): WatchJobsResponse {
    job.sentSequence = event.sequence;
    this.eventsSinceCursor++;
    return {
      job: `jobs/${nameOf(jobId)}`,
      event: toEvent(jobId, event),
      omittedStepEvents: omittedCount,
      cursor: '',
    };
  }

  /** Reports the position, and forgets jobs that need no position any more. */
  private cursor(): WatchJobsResponse {
    if (!this.isAnyChanged && this.unknown.size === 0) {
      let settledUntilMs = this.parts.journal.now() - settledMs;
      // Jobs of which nothing was sent are found by their time of creation: they need no position.
      for (const { createTimeMs, sentSequence, isDone } of this.jobs.values())
        if (!isDone && sentSequence === 0 && createTimeMs > this.settledUntilMs)
          settledUntilMs = Math.min(settledUntilMs, createTimeMs - 1);
      this.settledUntilMs = Math.max(this.settledUntilMs, settledUntilMs);
    }
    const sent: Place['sent'] = {};
    for (const [id, { createTimeMs, sentSequence, isDone }] of this.jobs) {
      const isSettled = createTimeMs <= this.settledUntilMs;
      if (isDone && isSettled) this.jobs.delete(id);
      else if (isSettled || sentSequence > 0) sent[id] = sentSequence;
    }
    this.cursorAtMs = performance.now();
    this.eventsSinceCursor = 0;
    const token = this.parts.pageTokens.write(this.subject, { settledUntilMs: this.settledUntilMs, sent });
    return { job: '', event: undefined, omittedStepEvents: 0, cursor: `${this.storeId}.${token}` };
  }

  /** Waits until something may be new, a waiting step is due, or a cursor is. */
  private async sleep(signal: AbortSignal): Promise<void> {
    const { stopping } = this.parts;
    const nowMs = performance.now();
    const hadUnknown = this.unknown.size > 0;
    const dues = [...this.jobs.values()].flatMap(({ steps }) => steps.waitMs(nowMs) ?? []);
    const lookDueMs = hadUnknown ? this.lookedAtMs + lookMs - nowMs : Infinity;
    const waitMs = Math.max(0, Math.min(this.cursorAtMs + this.cursorEveryMs - nowMs, lookDueMs, ...dues));
    const isEnded = (): boolean => signal.aborted || stopping.aborted;
    // A client that thins steps is not woken by each of them.
    const restMs = this.wish.stepIntervalMs > 0 ? Math.min(lookMs, waitMs) : 0;
    if (restMs > 0) await this.waitFor(isEnded, restMs);
    await this.waitFor(
      () =>
        isEnded() ||
        this.isAnyChanged ||
        this.changed.size > 0 ||
        // While one is waiting to be looked up, another does not wake it: they are looked up together.
        (this.unknown.size > 0 && !hadUnknown),
      waitMs - restMs,
    );
  }

  private async waitFor(condition: () => boolean, ms: number): Promise<void> {
    if (condition()) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wake = () => {
        if (!condition()) return;
        clearTimeout(timer);
        resolve();
      };
    });
    this.wake = () => {};
  }
}
