import type { Job, WatchJobResponse } from './contract.js';
import { backoffMs, isConnectionFault, LinkedAbort, sleep, type RetryOptions } from './calls.js';
import { ReloraError } from './errors.js';
import { fromEventMessage, type JobEvent } from './events.js';
import { isTerminal } from './jobState.js';

export interface WatchOptions {
  /** Events with a higher number only; 0, the default, for all from the beginning. */
  afterSequence?: number;
  signal?: AbortSignal;
  /** Silence after which the connection counts as dead; the server sends a heartbeat every 10 s. Default 30 s. */
  silenceMs?: number;
  /** Gives up after this long without any contact; default 5 min. */
  unreachableMs?: number;
}

export interface WatchCalls {
  /** Opens one stream of a job's events after a sequence number. */
  open(afterSequence: number, signal: AbortSignal): AsyncIterable<WatchJobResponse>;
  get(signal: AbortSignal): Promise<Job>;
}

/**
 * A job's events, each once and in order, until the final one: when a stream breaks it is opened again after the last
 * number. A number that was seen is dropped, one that was left out is an error. Aborting ends it with the signal's reason.
 */
export async function* watchJob(
  calls: WatchCalls,
  options: WatchOptions,
  retries: RetryOptions,
  signal: AbortSignal,
): AsyncGenerator<JobEvent, void, undefined> {
  const { silenceMs = 30_000, unreachableMs = 300_000 } = options;
  let sequence = options.afterSequence ?? 0;
  let failures = 0;
  let contactAt = Date.now();

  for (;;) {
    let advisedMs = 0;
    try {
      for await (const { event } of untilSilence(calls, sequence, silenceMs, signal)) {
        failures = 0;
        contactAt = Date.now();
        if (event === undefined || event.heartbeat !== undefined || event.sequence <= sequence) continue;
        if (event.sequence > sequence + 1) throw gap(sequence, event.sequence);
        sequence = event.sequence;
        const known = fromEventMessage(event);
        if (known !== null) yield known;
        if (event.final) return;
        contactAt = Date.now(); // the time that the reader took was no silence of the server
      }
      // Ended well but not by the final event: that one was delivered before, or the server wants to be asked again.
      const { state, lastSequence } = await calls.get(signal);
      if (isTerminal(state) && lastSequence <= sequence) return;
      contactAt = Date.now();
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof ReloraError) || !isWorthAnother(error)) throw error;
      if (Date.now() - contactAt > unreachableMs) throw error;
      advisedMs = error.retryDelayMs ?? 0;
      retries.onRetry?.(error, advisedMs);
    }
    await sleep(Math.max(advisedMs, backoffMs(++failures, retries)), signal);
  }
}

/** ABORTED is how a server says that the reader was too slow: the journal still has everything. */
function isWorthAnother(error: ReloraError): boolean {
  if (error.code === 'RESOURCE_EXHAUSTED') return error.retryDelayMs !== undefined;
  return isConnectionFault(error) || ['ABORTED', 'DEADLINE_EXCEEDED', 'CANCELLED'].includes(error.code);
}

/** The messages of one stream; a silence longer than allowed ends it as UNAVAILABLE. */
async function* untilSilence(
  calls: WatchCalls,
  sequence: number,
  silenceMs: number,
  signal: AbortSignal,
): AsyncGenerator<WatchJobResponse> {
  using stop = new LinkedAbort(signal);
  // Runs only while a message is awaited: a reader may take its time with one.
  const startTimer = () => setTimeout(() => stop.abort(silent(silenceMs)), silenceMs);
  let timer = startTimer();
  try {
    for await (const message of calls.open(sequence, stop.signal)) {
      clearTimeout(timer);
      yield message;
      timer = startTimer();
    }
  } finally {
    clearTimeout(timer);
  }
}

function silent(silenceMs: number): ReloraError {
  return new ReloraError(`The server was silent for ${silenceMs} ms`, { code: 'UNAVAILABLE' });
}

function gap(sequence: number, next: number): ReloraError {
  const message = `Event ${sequence + 1} is missing: ${next} came after ${sequence}`;
  return new ReloraError(message, { code: 'DATA_LOSS', reason: 'SEQUENCE_GAP' });
}
