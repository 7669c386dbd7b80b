import { phases, spanOf, stepMetrics, type Spread, type StepSpan } from '@relora/engine/plan';
import type { Database } from '../store/database.js';
import type { StepSpanRow } from '../store/schema.js';
import type { JobEvent, JobEventBody } from './job.js';

export type StepBody = JobEventBody & { kind: 'step' };

/** A step event, or the event of a span. */
export type StepEntry = JobEvent & { body: StepBody };

/** Steps of the spans next to the head: a curve is read from these if single events would be too many. */
export const spanStepCountMin = 16;

/** Of each spread, in stored order. */
const spreadKeys = ['last', 'min', 'max', 'mean', 'valueCount', 'nonfiniteCount'] as const;
/** The first of the numbers, so that another layout can follow. */
const layoutVersion = 1;
const headLength = 16;
const numberCount = headLength + stepMetrics.length * spreadKeys.length;
/** Length in base64. */
const textLength = 4 * Math.ceil((8 * numberCount) / 3);

/**
 * The row of a span. Thousands of them are read for one curve, so the numbers are stored as they are in memory, in base64: this is read
 * several times as fast as JSON, and is text, which both databases treat alike.
 */
export function toSpanRow(jobId: string, entry: StepEntry, isFolded: boolean): StepSpanRow {
  return {
    job_id: jobId,
    last_sequence: entry.sequence,
    first_sequence: entry.firstSequence,
    first_step: spanOf(entry.body).firstStep,
    last_step: entry.body.step,
    attempt: entry.attempt,
    time_ms: entry.timeMs,
    folded: isFolded ? 1 : 0,
    body: encode(entry.body),
  };
}

export function toStepEntry(row: StepSpanRow): StepEntry {
  return {
    sequence: row.last_sequence,
    firstSequence: row.first_sequence,
    timeMs: row.time_ms,
    attempt: row.attempt,
    final: false,
    body: toStepBody(row.body),
  };
}

/** Spans whose step events were removed, after a sequence number, oldest first. */
export async function foldedSpansAfter(
  db: Database,
  jobId: string,
  sequence: number,
  spansMax: number,
): Promise<StepEntry[]> {
  const rows = await db
    .selectFrom('step_spans')
    .selectAll()
    .where('job_id', '=', jobId)
    .where('folded', '=', 1)
    .where('last_sequence', '>', sequence)
    .orderBy('last_sequence')
    .limit(spansMax)
    .execute();
  return rows.map(toStepEntry);
}

export type SpanBody = Pick<StepSpanRow, 'last_sequence' | 'folded' | 'body'>;

/**
 * All spans of a job, the last first, in one query: there are a few thousand, however long the job is. Only what a curve needs is read:
 * getting a value from the database costs as much as the arithmetic on it.
 */
export async function spansBackwards(db: Database, jobId: string): Promise<SpanBody[]> {
  return await db
    .selectFrom('step_spans')
    .select(['last_sequence', 'folded', 'body'])
    .where('job_id', '=', jobId)
    .orderBy('last_sequence', 'desc')
    .execute();
}

function encode(body: StepBody): string {
  const span = spanOf(body);
  const numbers = new Float64Array(numberCount);
  numbers.set([
    layoutVersion,
    body.step,
    phases.indexOf(body.phase),
    body.loss,
    body.gradientNorm,
    body.learningRate,
    body.tokenCount,
    body.trainedTokens,
    body.stepSeconds,
    body.residentBytes,
    (body.skipped ? 1 : 0) + (body.omitted ? 2 : 0) + (body.span === undefined ? 0 : 4),
    span.firstStep,
    span.skippedCount,
    span.omittedCount,
    span.tokenCount,
    span.seconds,
  ]);
  stepMetrics.forEach((metric, index) =>
    numbers.set(
      spreadKeys.map((key) => span[metric][key]),
      headLength + index * spreadKeys.length,
    ),
  );
  // The byte order is that of the machine: stores are not moved to machines of the other order, which no longer exist.
  return Buffer.from(numbers.buffer).toString('base64');
}

/** Shared buffer for decoding: a curve decodes thousands, and new memory for each would cost a third more. */
const numbers = new Float64Array(numberCount);
const numberBytes = Buffer.from(numbers.buffer);

/** Thousands of these are decoded for one curve, so no intermediate list or object is made. */
export function toStepBody(text: string): StepBody {
  const length = numberBytes.write(text, 'base64');
  // The buffer cuts a longer text: another length means another layout.
  if (numbers[0] !== layoutVersion || length !== numbers.byteLength || text.length !== textLength)
    throw new Error(`A span has the layout ${numbers[0]} in ${text.length} characters`);
  const flags = numbers[10]!;
  const body: StepBody = {
    kind: 'step',
    step: numbers[1]!,
    phase: phases[numbers[2]!]!,
    loss: numbers[3]!,
    gradientNorm: numbers[4]!,
    learningRate: numbers[5]!,
    tokenCount: numbers[6]!,
    trainedTokens: numbers[7]!,
    stepSeconds: numbers[8]!,
    skipped: (flags & 1) !== 0,
    residentBytes: numbers[9]!,
  };
  if ((flags & 2) !== 0) body.omitted = true;
  // A single step is stored as it was.
  if ((flags & 4) !== 0) body.span = decodeSpan();
  return body;
}

function decodeSpan(): StepSpan {
  let place = headLength;
  const next = (): Spread => {
    const start = place;
    place += spreadKeys.length;
    return {
      last: numbers[start]!,
      min: numbers[start + 1]!,
      max: numbers[start + 2]!,
      mean: numbers[start + 3]!,
      valueCount: numbers[start + 4]!,
      nonfiniteCount: numbers[start + 5]!,
    };
  };
  const span = {
    firstStep: numbers[11]!,
    skippedCount: numbers[12]!,
    omittedCount: numbers[13]!,
    tokenCount: numbers[14]!,
    seconds: numbers[15]!,
  } as StepSpan;
  for (const metric of stepMetrics) span[metric] = next();
  return span;
}
