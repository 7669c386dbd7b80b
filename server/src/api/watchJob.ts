import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  WatchJobResponse,
  type DeepPartial,
  type WatchJobRequest,
  type WatchJobsRequest,
  type WatchJobsResponse,
} from '@relora/sdk/contract';
import type { JobEvent } from '../jobs/job.js';
import type { JobJournal } from '../jobs/jobJournal.js';
import { ServiceError } from '../errors.js';
import { EncodedAnswers, encoded } from '../grpc/service.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';
import { StepThinner, type ThinnedEvent } from './thinSteps.js';
import { toEvent, toHeader, toHeartbeat } from './toProto.js';
import type { Principal } from '../access/principal.js';
import type { StoreIdentity } from '../store/storeIdentity.js';
import { watchJobs } from './watchJobs.js';

/** A view that updates less often than once a minute does not show a running job any more. */
export const stepIntervalMsMax = 60_000;

type WatchParts = Pick<
  ApiParts,
  'config' | 'store' | 'journal' | 'metrics' | 'stopping' | 'pageTokens' | 'identity'
>;

/** The watches of all clients, counted and limited. */
export class JobWatches {
  private count = 0;
  /** Events for watchers that leave none out, encoded once for all of them. */
  private readonly wholeEvents = new WeakMap<JobEvent, Buffer>();

  constructor(private readonly parts: WatchParts) {
    // Each watch listens for the end of the server; Node would report more than ten listeners as a leak.
    setMaxListeners(0, parts.stopping);
  }

  async *watch(
    request: WatchJobRequest,
    signal: AbortSignal,
    { tenant }: Principal,
  ): AsyncGenerator<EncodedAnswers> {
    const { config, store, journal, identity, stopping } = this.parts;
    const jobId = parseJobName(tenant, 'name', request.name);
    const { afterSequence, stepIntervalMs, acceptSpans, storeId } = request;
    const checks = new FieldChecks();
    if (afterSequence < 0) checks.add('after_sequence', 'a whole number from 0', afterSequence);
    checks.integer('step_interval_ms', stepIntervalMs, 0, 0, stepIntervalMsMax);
    checks.throwIfWrong();
    if (storeId !== '' && storeId !== identity.id)
      throw new ServiceError('STORE_CHANGED', { storeId: identity.id });
    const { lastSequence } = await requireJob(store, jobId);
    if (afterSequence > lastSequence) {
      // The number is of this store, but unknown to it: the store lost events that it had acknowledged.
      if (storeId !== '') throw new ServiceError('STORE_CHANGED', { storeId });
      throw new ServiceError('SEQUENCE_BEYOND_END', {
        jobId,
        afterSequence,
        oldestSequence: 1,
        newestSequence: lastSequence,
      });
    }
    const heartbeatMs = config.heartbeatSeconds * 1000;
    const wish = { jobId, afterSequence, stepIntervalMs, acceptSpans, heartbeatMs };
    const encode = (thinned: ThinnedEvent): Buffer => this.encode(jobId, thinned);
    yield* this.counted(() => watchEvents({ journal, identity, wish, encode, signal, stopping }));
  }

  private encode(jobId: string, { event, omittedCount }: ThinnedEvent): Buffer {
    const isWhole = omittedCount === event.sequence - event.firstSequence;
    let bytes = isWhole ? this.wholeEvents.get(event) : undefined;
    if (bytes === undefined) {
      bytes = toBytes({ event: toEvent(jobId, event), omittedStepEvents: omittedCount });
      if (isWhole) this.wholeEvents.set(event, bytes);
    }
    return bytes;
  }

  /** See watchJobs.ts. */
  async *watchAll(
    request: WatchJobsRequest,
    signal: AbortSignal,
    { tenant }: Principal,
  ): AsyncGenerator<WatchJobsResponse> {
    const stream = await watchJobs(this.parts, request, tenant, signal);
    yield* this.counted(() => stream);
  }

  private async *counted<Message>(open: () => AsyncGenerator<Message>): AsyncGenerator<Message> {
    const { config, metrics } = this.parts;
    if (this.count >= config.watchersMax)
      throw new ServiceError('WATCHERS_FULL', { watchersMax: config.watchersMax });
    metrics.watchers.set(++this.count);
    try {
      yield* open();
    } finally {
      metrics.watchers.set(--this.count);
    }
  }
}

/** How often a watcher with a waiting step looks for other events. */
const wakeMs = 500;

export interface WatchWish {
  jobId: string;
  afterSequence: number;
  /** At most one step event in this time; 0 for all. */
  stepIntervalMs: number;
  /** Whether the client knows that an event may stand for several; for others, events with the numbers in between are sent, too. */
  acceptSpans: boolean;
  /** Silence after which a heartbeat is sent. */
  heartbeatMs: number;
}

/** Size at which a batch is sent: with larger ones, a slow reader would keep much in memory. */
const batchBytesMax = 64 * 1024;

interface Watch {
  journal: JobJournal;
  identity: StoreIdentity;
  wish: WatchWish;
  encode: (event: ThinnedEvent) => Buffer;
  signal: AbortSignal;
  stopping: AbortSignal;
}

/**
 * The events of a job after a sequence number, up to the final one, after a first message that says which store the numbers belong to. It
 * reads the journal from a cursor rather than listen for events: what is appended while a slow client blocks it at `yield` is found on the
 * next pass, so a client that never reads costs one page of events. After a silence of heartbeatMs it says that nothing is new. Throws
 * SERVER_STOPPING.
 */
async function* watchEvents({
  journal,
  identity,
  wish: { jobId, afterSequence, stepIntervalMs, acceptSpans, heartbeatMs },
  encode,
  signal,
  stopping,
}: Watch): AsyncGenerator<EncodedAnswers> {
  const ended = new AbortController();
  const end = (): void => ended.abort();
  signal.addEventListener('abort', end);
  stopping.addEventListener('abort', end);
  const steps = new StepThinner(stepIntervalMs);
  const storeId = identity.id;
  let isFirst = true;
  let sequence = afterSequence;
  /** What the client has, and when it last received something. */
  let sent = { sequence: afterSequence, timeMs: performance.now() };
  /** Concatenated protobuf messages are merged by the decoder. */
  const withStore = (bytes: Buffer): Buffer => {
    if (!isFirst) return bytes;
    isFirst = false;
    return Buffer.concat([bytes, toBytes({ storeId })]);
  };
  const respond = (thinned: ThinnedEvent): Buffer => {
    sent = { sequence: thinned.event.sequence, timeMs: performance.now() };
    return withStore(encode(thinned));
  };
  const heartbeat = (): EncodedAnswers => {
    sent.timeMs = performance.now();
    return new EncodedAnswers([withStore(toBytes({ event: toHeartbeat(sent.sequence) }))]);
  };
  try {
    for (;;) {
      if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
      if (stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
      if (storeId !== identity.id) throw new ServiceError('STORE_CHANGED', { storeId: identity.id });
      const { events, isComplete } = await journal.readAfter(jobId, sequence);
      let batch: Buffer[] = [];
      let batchBytes = 0;
      for (const event of events) {
        // A client that thins steps knows that numbers are left out.
        const before =
          acceptSpans || stepIntervalMs > 0 ? [] : fillers(event, sequence).map((bytes) => withStore(bytes));
        const messages = [...before, ...steps.take(event, performance.now()).map(respond)];
        sequence = event.sequence;
        for (const bytes of messages) {
          batch.push(bytes);
          batchBytes += bytes.length;
        }
        if (batchBytes < batchBytesMax) continue;
        yield new EncodedAnswers(batch);
        if (signal.aborted || stopping.aborted) break;
        batch = [];
        batchBytes = 0;
      }
      if (signal.aborted || stopping.aborted) continue;
      if (batch.length > 0) yield new EncodedAnswers(batch);
      if (isComplete) return; // also if the cursor was at the last event from the start
      if (events.length > 0) continue;
      const nowMs = performance.now();
      const dueMs = steps.waitMs(nowMs);
      // By the clock rather than by waits without news: a shared store wakes every watcher every few seconds.
      const silenceMs = sent.timeMs + heartbeatMs - nowMs;
      if (dueMs === 0) yield new EncodedAnswers(steps.rest(nowMs).map(respond));
      else if (silenceMs <= 0) yield heartbeat();
      else if (dueMs === undefined) await changedWithin(journal, jobId, sequence, silenceMs, ended.signal);
      // Where hundreds watch a fast job, waking for every batch would cost more than anything else. It still wakes regularly: other events
      // than steps may come.
      else await sleep(Math.min(dueMs, wakeMs), undefined, { signal: ended.signal }).catch(() => {});
    }
  } finally {
    signal.removeEventListener('abort', end);
    stopping.removeEventListener('abort', end);
  }
}

/** An event without a kind for each number of a span except the last: clients of 0.1.0 ignore these, but would report the gap. */
function fillers(event: JobEvent, afterSequence: number): Buffer[] {
  const first = Math.max(afterSequence + 1, event.firstSequence);
  return Array.from({ length: Math.max(0, event.sequence - first) }, (_, index) => {
    const number = first + index;
    return toBytes({ event: { ...toHeader(event), sequence: number, firstSequence: number } });
  });
}

function toBytes(message: DeepPartial<WatchJobResponse>): Buffer {
  return encoded(WatchJobResponse, message);
}

/** Waits until the job has news, the time is over, or the signal aborts. */
async function changedWithin(
  journal: JobJournal,
  jobId: string,
  sequence: number,
  timeMs: number,
  signal: AbortSignal,
): Promise<void> {
  const limit = new AbortController();
  const abort = (): void => limit.abort();
  const timer = setTimeout(abort, timeMs);
  signal.addEventListener('abort', abort);
  if (signal.aborted) abort();
  try {
    await journal.changedSince(jobId, sequence, limit.signal);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
  }
}
