import type { JobRow, EventRow } from '../store/schema.js';
import type { Execution, Job, JobEvent, JobEventBody, JobFailure, JobOrigin, JobProgress } from './job.js';
import { readStoredRunSpec } from '@relora/engine/plan';

/** A job as the rest of the server sees it, from its row. What the store holds was checked before it was written. */
export function toJob(row: JobRow, queuePosition = 0): Job {
  return {
    id: row.id,
    displayName: row.display_name,
    labels: JSON.parse(row.labels) as Record<string, string>,
    spec: readStoredRunSpec(row.spec),
    state: row.state,
    stateReason: row.state_reason,
    failure: row.failure === null ? null : (JSON.parse(row.failure) as JobFailure),
    progress: JSON.parse(row.progress) as JobProgress,
    attempt: row.attempt,
    stopRequest: row.stop_request,
    lastSequence: row.last_sequence,
    queuePosition,
    version: row.version,
    createTimeMs: row.create_time_ms,
    updateTimeMs: row.update_time_ms,
    startTimeMs: row.start_time_ms,
    endTimeMs: row.end_time_ms,
    execution: row.execution === null ? null : (JSON.parse(row.execution) as Execution),
    origin: row.origin === null ? null : (JSON.parse(row.origin) as JobOrigin),
  };
}

export function toEvent(row: EventRow): JobEvent {
  return {
    sequence: row.sequence,
    timeMs: row.time_ms,
    attempt: row.attempt,
    final: row.final === 1,
    body: parseBody(row.body),
  };
}

/** JSON has no NaN and no infinities, but a skipped step reports them: they are kept as marked objects. */
export function writeBody(body: JobEventBody): string {
  return JSON.stringify(body, (_key, value: unknown) =>
    typeof value === 'number' && !Number.isFinite(value) ? { nonFinite: String(value) } : value,
  );
}

function parseBody(text: string): JobEventBody {
  // Few have such a mark, and looking at every value for it takes several times as long as the parsing.
  if (!text.includes('"nonFinite"')) return JSON.parse(text) as JobEventBody;
  return JSON.parse(text, (_key, value: unknown) =>
    typeof value === 'object' && value !== null && 'nonFinite' in value ? Number(value.nonFinite) : value,
  ) as JobEventBody;
}
