import type { JobRow, EventRow } from '../store/schema.js';
import { readStoredRunSpec, type RunSpec } from '@relora/engine/plan';
import type {
  Execution,
  Job,
  JobEvent,
  JobEventBody,
  JobFailure,
  JobImport,
  JobOrigin,
  JobProgress,
} from './job.js';

/** The job of a row. The row was checked before it was written. */
export function toJob(row: JobRow, queuePosition = 0): Job {
  let spec: RunSpec | undefined;
  return {
    id: row.id,
    displayName: row.display_name,
    labels: JSON.parse(row.labels) as Record<string, string>,
    // Parsed only on access, because it is long and most callers do not need it.
    get spec() {
      return (spec ??= readStoredRunSpec(row.spec));
    },
    state: row.state,
    stateReason: row.state_reason,
    failure: row.failure === null ? null : (JSON.parse(row.failure) as JobFailure),
    progress: JSON.parse(row.progress) as JobProgress,
    attempt: row.attempt,
    stopRequest: row.stop_request,
    updateNumber: row.update_number,
    lastSequence: row.last_sequence,
    queuePosition,
    version: row.version,
    createTimeMs: row.create_time_ms,
    updateTimeMs: row.update_time_ms,
    startTimeMs: row.start_time_ms,
    endTimeMs: row.end_time_ms,
    execution: row.execution === null ? null : readExecution(row.execution),
    origin: row.origin === null ? null : (JSON.parse(row.origin) as JobOrigin),
    imported: row.imported === null ? null : (JSON.parse(row.imported) as JobImport),
    deleteTimeMs: row.delete_time_ms,
    purgeTimeMs: row.purge_time_ms,
  };
}

export function toEvent(row: EventRow): JobEvent {
  return {
    sequence: row.sequence,
    firstSequence: row.sequence,
    timeMs: row.time_ms,
    attempt: row.attempt,
    final: row.final === 1,
    body: parseBody(row.body),
  };
}

/** The row of an event; an event that stands for several is a row of its own kind (stepSpans.ts). */
export function toEventRow(
  jobId: string,
  { sequence, timeMs, attempt, final, body }: Omit<JobEvent, 'firstSequence'>,
): EventRow {
  return {
    job_id: jobId,
    sequence,
    time_ms: timeMs,
    attempt,
    final: final ? 1 : 0,
    body: writeBody(body),
    restart: body.kind === 'restart' ? body.restart : null,
    step: body.kind === 'step' ? body.step : null,
  };
}

/** JSON has no NaN and no infinities, but a skipped step reports them: they are stored as marked objects. */
function writeBody(body: JobEventBody): string {
  return JSON.stringify(body, (_key, value: unknown) =>
    typeof value === 'number' && !Number.isFinite(value) ? { nonFinite: String(value) } : value,
  );
}

function parseBody(text: string): JobEventBody {
  const body = parseNumbers(text);
  // Version 0.1 reported a restart only as a whole; what it did not measure stays unset.
  if (body.kind === 'restart') return { ...body, modules: (body as Partial<typeof body>).modules ?? [] };
  // Version 0.1 also marked an omitted step as skipped.
  if (body.kind === 'step' && body.omitted) return { ...body, skipped: false };
  return body;
}

function parseNumbers(text: string): JobEventBody {
  // Few events have this mark, and checking every value takes several times as long as parsing.
  if (!text.includes('"nonFinite"')) return JSON.parse(text) as JobEventBody;
  return JSON.parse(text, (_key, value: unknown) =>
    typeof value === 'object' && value !== null && 'nonFinite' in value ? Number(value.nonFinite) : value,
  ) as JobEventBody;
}

/** Version 0.1 recorded less: what is missing is unknown, and shown as empty. */
export function readExecution(text: string): Execution {
  const execution = JSON.parse(text) as Partial<Execution> & Pick<Execution, 'precision'>;
  const { precision } = execution;
  const quantized = { int8Base: 'int8', nf4Base: 'nf4' } as const;
  const unknown = {
    basePrecision: Object.hasOwn(quantized, precision)
      ? quantized[precision as keyof typeof quantized]
      : precision,
    graphs: [],
    baseWeightsSha256: null,
    specSha256: '',
    nodeVersion: '',
    tfjsVersion: '',
    deviceModel: '',
    cardUuid: '',
    libraries: [],
    replicas: 1,
  };
  return { ...unknown, ...execution } as Execution;
}
