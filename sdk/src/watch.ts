import type { Job, WatchJobResponse } from './contract.js';
import { LinkedAbort } from './aborts.js';
import type { CallOptions } from './callOptions.js';
import { ReloraError } from './errors.js';
import { fromEventMessage, storeChanged, type JobEvent } from './events.js';
import { isTerminal } from './jobState.js';
import type { Patience } from './patience.js';

export interface WatchOptions extends CallOptions {
  /** Events with a higher number only; 0, the default, for all from the beginning. */
  afterSequence?: number;
  /** `storeId` of the event with that number. Where the store is another one by now, the event `storeChanged` comes, and then all from the first on. */
  storeId?: string;
  /**
   * At most one step event in so many milliseconds, up to 60000; 0, the default, for all. Events of other kinds all come. For a
   * view of a fast job that many watch.
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

/** ABORTED is how a server says that the reader was too slow: the journal still has everything. */
export const worthAnotherWatch = ['ABORTED', 'DEADLINE_EXCEEDED', 'CANCELLED'] as const;

/**
 * A job's events, each once and in order, until the final one: when a stream breaks it is opened again after the last
 * number. A number that was seen is dropped, one that was left out is an error. Where the store has become another one it says so
 * and begins again.
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
      // Ended well but not by the final event: that one was delivered before, or the server wants to be asked again.
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
  // Runs only while a message is awaited: a reader may take its time with one.
  const startTimer = () => setTimeout(() => stop.abort(silent(silenceMs)), silenceMs);
  let timer = startTimer();
  try {
    signal.throwIfAborted();
    for await (const message of open(stop.signal)) {
      clearTimeout(timer);
      yield message;
      timer = startTimer();
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
