import type { WatchJobResponse } from './contract.js';
import { ReloraError } from './errors.js';
import { sleep } from './calls.js';
import { fromEventMessage, type JobEvent } from './events.js';

export interface WatchOptions {
  /** Events with a higher number only; 0, the default, for all from the beginning. */
  afterSequence?: number;
  signal?: AbortSignal;
  /** Silence after which the connection counts as dead; the server sends a heartbeat every 10 s. Default 30 s. */
  silenceMs?: number;
  /** Gives up after this long without any contact; default 5 min. */
  unreachableMs?: number;
}

/** Opens one stream of a job's events after a sequence number. */
export type OpenWatch = (afterSequence: number, signal: AbortSignal) => AsyncIterable<WatchJobResponse>;

const delayMs = { initial: 200, max: 5000 };

/**
 * A job's events, each once and in order, until the final one: when a stream breaks it is opened again after the last
 * number. A number that was seen is dropped, one that was left out is an error. Aborting ends it with the signal's reason.
 */
export async function* watchJob(open: OpenWatch, options: WatchOptions = {}): AsyncGenerator<JobEvent, void, undefined> {
  const { signal, silenceMs = 30_000, unreachableMs = 300_000 } = options;
  let sequence = options.afterSequence ?? 0;
  let failures = 0;
  let lastContact = Date.now();

  for (;;) {
    signal?.throwIfAborted();
    try {
      for await (const { event } of untilSilence(open, sequence, silenceMs, signal)) {
        failures = 0;
        lastContact = Date.now();
        if (event === undefined || event.heartbeat !== undefined) continue;
        if (event.sequence <= sequence) continue;
        if (event.sequence > sequence + 1) {
          throw new ReloraError(`Event ${sequence + 1} is missing: ${event.sequence} came after ${sequence}`, { code: 'DATA_LOSS', reason: 'SEQUENCE_GAP' });
        }
        sequence = event.sequence;
        const known = fromEventMessage(event);
        if (known !== null) yield known;
        if (event.final) return;
      }
      // The server ended the stream well but the job goes on: not a promise it makes, so ask again.
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof ReloraError) || !isWorthAnother(error)) throw error;
      if (Date.now() - lastContact > unreachableMs) throw error;
      await sleep(Math.max(error.retryDelayMs ?? 0, backoffMs(failures++)), signal);
      continue;
    }
    await sleep(backoffMs(failures++), signal);
  }
}

/** ABORTED is how a server says that the reader was too slow: the journal still has everything. */
function isWorthAnother(error: ReloraError): boolean {
  return ['UNAVAILABLE', 'ABORTED', 'DEADLINE_EXCEEDED', 'CANCELLED'].includes(error.code) || (error.code === 'RESOURCE_EXHAUSTED' && error.retryDelayMs !== undefined);
}

function backoffMs(failures: number): number {
  return Math.min(delayMs.max, delayMs.initial * 2 ** failures) * (0.5 + Math.random() / 2);
}

/** The messages of one stream; a silence longer than allowed ends it as UNAVAILABLE. */
async function* untilSilence(
  open: OpenWatch, sequence: number, silenceMs: number, signal: AbortSignal | undefined,
): AsyncGenerator<WatchJobResponse> {
  const silence = new AbortController();
  const both = signal ? AbortSignal.any([signal, silence.signal]) : silence.signal;
  // Runs only while a message is awaited: a reader may take its time with one.
  let timer = setTimeout(() => silence.abort(), silenceMs);
  try {
    for await (const message of open(sequence, both)) {
      clearTimeout(timer);
      yield message;
      timer = setTimeout(() => silence.abort(), silenceMs);
    }
  } catch (error) {
    signal?.throwIfAborted();
    if (silence.signal.aborted) throw new ReloraError(`The server was silent for ${silenceMs} ms`, { code: 'UNAVAILABLE' }, { cause: error });
    throw error;
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}
