import {
  bestEvaluation,
  choiceEvaluation,
  datasetEvaluation,
  exportDifference,
  exportFormats,
  ggufTypes,
  phases,
  runChange,
  shapes,
  stopReasons,
  trainingEvent,
  trainingEvents,
} from '@relora/engine/plan';
import { execution, type JobEventBody } from '../jobs/job.js';

const {
  count,
  flag,
  list,
  longText,
  matching,
  name,
  number,
  object,
  oneOf,
  orMissing,
  orNull,
  sha256,
  text,
} = shapes;

/** The file that describes the job; the other files belong to its checkpoints, its artifacts and its data sets. */
export const recordFile = 'job.jsonl';
export const archiveVersion = 1;
/** Limit of a line: a specification with its questions, or one event. */
export const lineBytesMax = 4 << 20;

/** Limit of a manifest, which is read as a whole: that of a data set of a terabyte has a few megabytes. */
export const manifestBytesMax = 32 << 20;

/** States in which a job does not change by itself. */
export const exportedStates = ['paused', 'succeeded', 'failed', 'cancelled'] as const;

const checkpointFolder = matching(/^step-[0-9]{1,12}-[0-9]{1,9}$/);
const plainName = matching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$/);
const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function recordOf<T>(valueShape: shapes.Shape<T>): shapes.Shape<Record<string, T>> {
  return (value): value is Record<string, T> =>
    isRecord(value) &&
    Object.keys(value).length <= 64 &&
    Object.values(value).every((entry) => valueShape(entry));
}

/** Milliseconds since 1970, up to the year 9999, the limit of an answer's timestamps. */
const time: shapes.Shape<number> = (value): value is number => count(value) && value < 253_402_300_800_000;

/** Far more than there can be, and far below what the columns and messages of the numbers hold, so that they can still rise. */
const upTo =
  (max: number): shapes.Shape<number> =>
  (value): value is number =>
    count(value) && value <= max;
const small = upTo(2 ** 30);
const sequence = upTo(2 ** 50);
const sizeBytes = upTo(2 ** 50);

/** The store takes no text with NUL. */
const withoutNul =
  (shape: shapes.Shape<string>): shapes.Shape<string> =>
  (value): value is string =>
    shape(value) && !value.includes('\0');

const failure = object({ reason: name, message: longText, lastLines: orMissing(list(1000, longText)) });
const origin = object({ job: name, step: count });
const stop = object({ step: count, reason: oneOf(stopReasons), value: number, limit: number });

const datasetSpec = object({
  tokenizer: shapes.union('kind', {
    bytes: {},
    trainedBpe: { vocabularySize: count },
    huggingFace: {
      endTokens: orMissing(object({ ids: list(64, count), name: orNull(name), isAsked: orMissing(flag) })),
    },
  }),
  heldOutShare: number,
  textField: text(256),
  pairFields: orMissing(object({ prompt: text(256), completion: text(256) })),
  chat: orMissing(object({ field: text(256), template: text(1 << 20), tokens: recordOf(text(4096)) })),
  seed: count,
  base: orMissing(name),
  skipInvalid: orMissing(
    (value): value is { count: number } | { share: number } =>
      object({ count })(value) || object({ share: number })(value),
  ),
});

const progress = object({
  step: count,
  stepCount: count,
  phase: orNull(oneOf(phases)),
  restartCount: small,
  trainedTokens: count,
  loss: orNull(number),
  evaluationLoss: orNull(number),
  tokensPerSecond: orNull(number),
  remainingSeconds: orNull(number),
  checkpointStep: orNull(count),
  datasets: orMissing(list(1024, object(datasetEvaluation))),
  evaluations: orMissing(recordOf(object(trainingEvents.namedEvaluation))),
  best: orMissing(object(bestEvaluation)),
  stop: orMissing(stop),
});

/** The lines of a record, by kind. The job comes first, then the others in any order, and a last line that counts them. */
const lines = {
  job: {
    formatVersion: oneOf([archiveVersion]),
    serverVersion: name,
    storeId: name,
    id: matching(/^[a-z][a-z0-9-]{0,62}$/),
    displayName: withoutNul(text(256)),
    labels: recordOf(withoutNul(text(1024))),
    spec: isRecord,
    state: oneOf(exportedStates),
    stateReason: withoutNul(longText),
    failure: orNull(failure),
    progress,
    attempt: small,
    lastSequence: sequence,
    createTimeMs: time,
    updateTimeMs: time,
    startTimeMs: orNull(time),
    endTimeMs: orNull(time),
    execution: orNull(object(execution)),
    origin: orNull(origin),
    /** The data sets that it reads, by content. */
    datasets: list(1024, object({ name, manifestSha256: sha256 })),
  },
  update: { number: small, step: orNull(count), change: object(runChange) },
  event: {
    sequence,
    firstSequence: sequence,
    timeMs: time,
    attempt: small,
    final: flag,
    body: isBody,
  },
  checkpoint: {
    attempt: small,
    step: count,
    folder: checkpointFolder,
    sizeBytes,
    manifestSha256: sha256,
    createTimeMs: time,
    /** The files of its folder, including the manifest. */
    files: list(32, object({ fileName: plainName, sizeBytes, sha256 })),
  },
  artifact: {
    id: matching(/^[a-z][a-z0-9-]{0,62}$/),
    step: count,
    format: oneOf(exportFormats),
    weightType: oneOf(ggufTypes),
    castErrorMax: number,
    difference: orNull(object(exportDifference)),
    cycle: orNull(count),
    createTimeMs: time,
    files: list(
      10_000,
      object({
        fileName: matching(/^(base\/)?(additional_chat_templates\/)?[A-Za-z0-9][A-Za-z0-9._-]{0,254}$/),
        sizeBytes,
        sha256,
      }),
    ),
  },
  /** A prepared data set that the job reads. */
  dataset: {
    name: matching(/^datasets\/[a-z][a-z0-9-]{0,62}$/),
    displayName: withoutNul(text(256)),
    labels: recordOf(withoutNul(text(1024))),
    spec: datasetSpec,
    createTimeMs: time,
    manifestSha256: sha256,
    /** The files that it was made from, which are not in the archive. */
    sources: list(
      10_000,
      object({
        fileName: name,
        format: oneOf(['auto', 'text', 'jsonl', 'json', 'csv', 'parquet']),
        split: orNull(oneOf(['train', 'heldOut'])),
        sizeBytes,
        sha256: orNull(sha256),
      }),
    ),
    files: list(10_000, object({ fileName: plainName, sizeBytes, sha256 })),
  },
  evaluation: {
    timeMs: time,
    model: name,
    step: count,
    datasets: list(
      64,
      object({ dataset: name, loss: number, perplexity: number, bitsPerByte: number, tokenCount: count }),
    ),
    choices: orNull(object(choiceEvaluation)),
  },
  end: { lineCount: count },
} as const;

export type RecordLine = shapes.UnionOf<'kind', typeof lines>;
export type LineOf<Kind extends RecordLine['kind']> = Extract<RecordLine, { kind: Kind }>;

const recordLine = shapes.union('kind', lines);

/** Writes a line; numbers that are not finite are marked as in the store. */
export function writeLine(line: RecordLine): string {
  return `${JSON.stringify(line, (_key, value: unknown) =>
    typeof value === 'number' && !Number.isFinite(value) ? { nonFinite: String(value) } : value,
  )}\n`;
}

/** Undefined if the text is not a line of a record. */
export function readLine(lineText: string): RecordLine | undefined {
  try {
    const value: unknown = JSON.parse(lineText, (_key, entry: unknown) =>
      isRecord(entry) && 'nonFinite' in entry ? Number(entry['nonFinite']) : entry,
    );
    return recordLine(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

const states = ['queued', 'starting', 'running', 'paused', 'succeeded', 'failed', 'cancelled'] as const;
const ofServer = shapes.union('kind', {
  state: {
    from: orNull(oneOf(states)),
    to: oneOf(states),
    reason: longText,
    failure: orNull(failure),
    stopReason: orMissing(oneOf(stopReasons)),
  },
  artifact: { artifactId: name, sizeBytes },
});

function isBody(value: unknown): value is JobEventBody {
  return trainingEvent(value) || ofServer(value);
}
