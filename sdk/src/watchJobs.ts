import type { CallOptions } from './callOptions.js';
import type { WatchJobsResponse } from './contract.js';
import { fromEventMessage, storeChanged, type JobEvent } from './events.js';
import type { Patience } from './patience.js';
import { gap, isStoreChanged, type WatchOptions } from './watch.js';

export interface WatchJobsOptions extends CallOptions, Pick<WatchOptions, 'stepIntervalMs' | 'silenceMs'> {
  /** `jobs/…` of each; by default all jobs with the labels. */
  names?: readonly string[];
  /** Only jobs with all of these. */
  labels?: Record<string, string>;
  /** Of jobs that are there already only what happens from now on. */
  skipPast?: boolean;
  /** End when all of the jobs have ended; otherwise it waits for jobs to come. */
  untilAllEnded?: boolean;
  /** One that `onCursor` was given, with the same names and labels. */
  cursor?: string;
  /**
   * Called now and then, between two events: all before were handed out. Who keeps the cursor together with what it made of the events
   * continues from there after its own end.
   */
  onCursor?: (cursor: string) => void;
}

/** An event of one of several jobs; `job` is empty with `storeChanged`, which concerns all. */
export type JobsEvent = JobEvent & { job: string };

/** As watchJob, for many: what follows a cursor is sent again after a broken stream, and what was seen of it is dropped. */
export async function* watchManyJobs(
  open: (cursor: string) => AsyncIterable<WatchJobsResponse>,
  begin: { cursor: string; onCursor(cursor: string): void },
  patience: Patience,
): AsyncGenerator<JobsEvent, void, undefined> {
  let { cursor } = begin;
  /** The last number of each job, and the jobs whose end was seen: after a broken stream what follows the cursor comes again. */
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
          // What was sent before a cursor never comes again, but the first only repeats where the stream was begun.
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
      return; // only ever where the end of all jobs was waited for
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
