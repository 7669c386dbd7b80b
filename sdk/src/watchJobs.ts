import type { CallOptions } from './callOptions.js';
import type { WatchJobsResponse } from './contract.js';
import { fromEventMessage, storeChanged, type JobEvent } from './events.js';
import type { Patience } from './patience.js';
import { gap, isStoreChanged, type WatchOptions } from './watch.js';

export interface WatchJobsOptions extends CallOptions, Pick<WatchOptions, 'stepIntervalMs' | 'silenceMs'> {
  /** `jobs/…` of each; default: all jobs with the labels. */
  names?: readonly string[];
  /** Only jobs with all of these labels. */
  labels?: Record<string, string>;
  /** For existing jobs, only future events. */
  skipPast?: boolean;
  /** End when all of the jobs have ended; otherwise also wait for future jobs. */
  untilAllEnded?: boolean;
  /** A cursor that `onCursor` got, with the same names and labels. */
  cursor?: string;
  /**
   * Called regularly, between two events: all events before it were delivered. A program that stores the cursor together with what it made
   * of the events can continue from there after it was stopped.
   */
  onCursor?: (cursor: string) => void;
}

/** An event of one of several jobs; `job` is empty for `storeChanged`, which concerns all. */
export type JobsEvent = JobEvent & { job: string };

/** Like watchJob, for many jobs: after a broken stream, what follows the cursor is sent again, and what was already seen is dropped. */
export async function* watchManyJobs(
  open: (cursor: string) => AsyncIterable<WatchJobsResponse>,
  begin: { cursor: string; onCursor(cursor: string): void },
  patience: Patience,
): AsyncGenerator<JobsEvent, void, undefined> {
  let { cursor } = begin;
  /** The last number of each job, and the jobs whose end was seen: after a broken stream, events after the cursor are repeated. */
  const seen = new Map<string, number>();
  const ended = new Set<string>();
  for (;;) {
    try {
      let isFirstCursor = true;
      for await (const { job, event, omittedStepEvents, cursor: next } of open(cursor)) {
        patience.progress();
        if (next !== '') {
          cursor = next;
          begin.onCursor(cursor);
          // Events before a cursor are never repeated. The first cursor of a stream only repeats the one that the stream began with.
          if (!isFirstCursor) for (const job of ended) seen.delete(job);
          if (!isFirstCursor) ended.clear();
          isFirstCursor = false;
        }
        if (event === undefined) continue;
        const last = seen.get(job);
        if (last !== undefined) {
          if (event.sequence <= last) continue;
          if (event.sequence > last + 1 + omittedStepEvents) throw gap(last, event.sequence);
        }
        seen.set(job, event.sequence);
        if (event.final) ended.add(job);
        const known = fromEventMessage(event, cursor.slice(0, cursor.indexOf('.')));
        if (known !== null) yield { ...known, job };
      }
      return; // only happens if the end of all jobs was waited for
    } catch (error) {
      if (isStoreChanged(error)) {
        yield { ...storeChanged(error.message), job: '' };
        cursor = '';
        seen.clear();
        ended.clear();
      } else await patience.pause(error);
    }
  }
}
