import type { Job, WatchJobResponse } from './contract.js';
import { LinkedAbort, startTimer } from './aborts.js';
import type { CallOptions } from './callOptions.js';
import { ReloraError } from './errors.js';
import { fromEventMessage, storeChanged, type JobEvent } from './events.js';
import { isTerminal } from './jobState.js';
import type { Patience } from './patience.js';

export interface WatchOptions extends CallOptions {
  /** Only events with a higher number; 0, the default, for all from the beginning. */
  afterSequence?: number;
  /**
   * `storeId` of the event with that number. If the present store is another one, the event `storeChanged` comes, and then all events from
   * the first.
   */
  storeId?: string;
  /**
   * At most one step event per this many milliseconds, up to 60000; 0, the default, for all. Events of other kinds are all sent. For views
   * of a fast job with many watchers.
   */
  stepIntervalMs?: number;
  /** Silence after which the connection counts as dead; the server sends a heartbeat every 10 s. Default 30 s. */
  silenceMs?: number;
}

export interface WatchCalls {
  /** Opens one stream of a job's events after a sequence number of a store. */
  open(afterSequence: number, storeId: string): AsyncIterable<WatchJobResponse>;
  get(): Promise<Job>;
}

/**
 * A job's events, each once and in order, up to the final one: a broken stream is opened again after the last number. Repeated numbers are
 * dropped, a missing one is an error. If the store has changed, it reports that and begins again.
 */
export async function* watchJob(
  calls: WatchCalls,
  from: { afterSequence: number; storeId: string },
  patience: Patience,
): AsyncGenerator<JobEvent, void, undefined> {
  let { afterSequence: sequence, storeId } = from;
  for (;;) {
    try {
      for await (const response of calls.open(sequence, storeId)) {
        patience.progress();
        const { event, omittedStepEvents } = response;
        storeId = response.storeId || storeId;
        if (event === undefined || event.heartbeat !== undefined || event.sequence <= sequence) continue;
        if (event.sequence > sequence + 1 + omittedStepEvents) throw gap(sequence, event.sequence);
        sequence = event.sequence;
        const known = fromEventMessage(event, storeId);
        if (known !== null) yield known;
        if (event.final) return;
      }
      // The stream ended without error and without the final event: either that was delivered before, or the server wants the client to
      // reconnect.
      const { state, lastSequence } = await calls.get();
      if (isTerminal(state) && lastSequence <= sequence) return;
      throw new ReloraError('The server ended the stream before the job ended', { code: 'UNAVAILABLE' });
    } catch (error) {
      if (isStoreChanged(error)) {
        yield storeChanged(error.message);
        sequence = 0;
        storeId = '';
      } else await patience.pause(error);
    }
  }
}

export function isStoreChanged(error: unknown): error is ReloraError {
  return error instanceof ReloraError && error.reason === 'STORE_CHANGED';
}

/** The messages of one stream; a silence longer than allowed ends it as UNAVAILABLE. */
export async function* untilSilence<Message>(
  open: (signal: AbortSignal) => AsyncIterable<Message>,
  silenceMs: number,
  signal: AbortSignal,
): AsyncGenerator<Message> {
  const stop = new LinkedAbort();
  const onAbort = () => stop.abort(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  // The timer runs only while a message is awaited: a reader may take its time.
  const start = () => startTimer(silenceMs, () => stop.abort(silent(silenceMs)));
  let timer = start();
  try {
    signal.throwIfAborted();
    for await (const message of open(stop.signal)) {
      clearTimeout(timer);
      yield message;
      timer = start();
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
  }
}

function silent(silenceMs: number): ReloraError {
  return new ReloraError(`The server was silent for ${silenceMs} ms`, { code: 'UNAVAILABLE' });
}

export function gap(sequence: number, next: number): ReloraError {
  const message = `Event ${sequence + 1} is missing: ${next} came after ${sequence}`;
  return new ReloraError(message, { code: 'DATA_LOSS', reason: 'SEQUENCE_GAP' });
}
