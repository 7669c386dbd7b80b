import type { WatchJobResponse } from '@relora/sdk/contract';
import { CallFailed, failureOf, messageOf, type Json } from './api.js';

export type Watched = Json<WatchJobResponse>;

export interface WatchHooks {
  onEvent(watched: Watched): void;
  /** `live` while events arrive; otherwise why not, until they do again. */
  onState(state: 'live' | 'ended' | { problem: string }): void;
}

const firstDelayMs = 500;
const delayMsMax = 10_000;

/**
 * Follows a job's journal after a sequence number. If the connection breaks it reconnects with the last received number, so each event
 * arrives once. EventSource could do that, but gives up at the first answer other than 200, such as that of a server that is starting.
 */
export function watchJob(
  jobId: string,
  afterSequence: number,
  hooks: WatchHooks,
): { stop(): void; sequence(): number } {
  const over = new AbortController();
  let sequence = afterSequence;

  const read = async (): Promise<'ended' | 'broken'> => {
    const response = await fetch(
      `/api/jobs/${encodeURIComponent(jobId)}/events?step_interval_ms=1000&accept_spans=true`,
      {
        headers: { accept: 'text/event-stream', 'last-event-id': String(sequence) },
        signal: over.signal,
      },
    );
    if (!response.ok) throw await failureOf(response);
    hooks.onState('live');
    for await (const data of messagesOf(response.body!)) {
      const watched = JSON.parse(data) as Watched;
      sequence = Number(watched.event!.sequence);
      hooks.onEvent(watched);
      if (watched.event!.final) return 'ended';
    }
    return 'broken';
  };

  const run = async (): Promise<void> => {
    let delayMs = firstDelayMs;
    while (!over.signal.aborted) {
      const before = sequence;
      try {
        if ((await read()) === 'ended') return hooks.onState('ended');
        hooks.onState({ problem: 'The server ended the stream' });
      } catch (error) {
        if (over.signal.aborted) return;
        // Errors that a retry cannot change are not retried.
        const isFinal = error instanceof CallFailed && error.status >= 400 && error.status < 429;
        hooks.onState({ problem: messageOf(error) });
        if (isFinal) return;
      }
      delayMs = sequence > before ? firstDelayMs : Math.min(delayMs * 2, delayMsMax);
      await new Promise((resolve) => setTimeout(resolve, delayMs * (0.5 + Math.random() / 2)));
    }
  };
  void run();
  return { stop: () => over.abort(), sequence: () => sequence };
}

/** The data of each message of a stream of Server-Sent Events. */
async function* messagesOf(body: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const reader = body
    .pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)
    .getReader();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split('\n\n');
      rest = parts.pop()!;
      for (const part of parts) {
        const data = part.split('\n').filter((line) => line.startsWith('data: '));
        if (data.length > 0) yield data.map((line) => line.slice('data: '.length)).join('\n');
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
