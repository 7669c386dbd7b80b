import { targetModules } from '@relora/engine/plan';
import type { ExportResult } from '../artifacts/artifact.js';
import type { TaskMessage, TrainerMessage } from './messages.js';

/** What a field must be. `number` allows NaN and infinities: a diverging run reports them. */
type Check = (value: unknown) => boolean;
type Shape = Readonly<Record<string, Check>>;

const number: Check = (value) => typeof value === 'number';
const count: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const flag: Check = (value) => typeof value === 'boolean';
const text =
  (lengthMax: number): Check =>
  (value) =>
    typeof value === 'string' && value.length <= lengthMax;
const oneOf =
  (...values: unknown[]): Check =>
  (value) =>
    values.includes(value);
const orNull =
  (check: Check): Check =>
  (value) =>
    value === null || check(value);
const orMissing =
  (check: Check): Check =>
  (value) =>
    value === undefined || check(value);
const object =
  (shape: Shape): Check =>
  (value) =>
    isRecord(value) && Object.entries(shape).every(([key, check]) => check(own(value, key)));
const list =
  (lengthMax: number, check: Check): Check =>
  (value) =>
    Array.isArray(value) && value.length <= lengthMax && value.every(check);

const name = text(512);
const path = text(4096);
const sha256: Check = (value) => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value);
const reason: Check = (value) => typeof value === 'string' && /^[A-Z][A-Z0-9_]{0,63}$/.test(value);

const graphs = list(
  targetModules.length,
  object({ module: oneOf(...targetModules), graph: oneOf('separate', 'merged', 'weightGradient') }),
);

/** Texts of models and errors. Longer ones would be one journal entry above what a client accepts in a message. */
const longText = text(64 * 1024);

const files = list(10_000, object({ fileName, sizeBytes: count, sha256 }));

const bodies: Readonly<Record<string, Shape>> = {
  step: {
    step: count,
    phase: oneOf('warmStart', 'adapter', 'fullRank'),
    loss: number,
    gradientNorm: number,
    learningRate: number,
    tokenCount: count,
    trainedTokens: count,
    stepSeconds: number,
    skipped: flag,
    omitted: orMissing(flag),
    residentBytes: count,
  },
  evaluation: {
    step: count,
    loss: number,
    perplexity: number,
    bitsPerByte: number,
    tokenCount: count,
    seconds: number,
  },
  restart: {
    step: count,
    restart: count,
    deltaNorm: number,
    logitChangeMax: number,
    logitChangeTolerance: number,
    momentsZeroedRatio: number,
    effectiveRank: number,
    learningRateBefore: number,
    learningRateAfter: number,
    lossBefore: number,
    lossAfter: number,
    seconds: number,
    modules: list(
      targetModules.length,
      object({
        module: oneOf(...targetModules),
        deltaNorm: number,
        effectiveRank: number,
        rankAboveOnePercent: number,
        measuredLayerCount: count,
      }),
    ),
    ranks: list(
      1024,
      object({ layer: name, effectiveRank: number, rankAboveOnePercent: count, adapterRank: count }),
    ),
  },
  plan: {
    step: count,
    graphs,
    plannedOperations: number,
    separateOperations: number,
    plannedSeconds: orNull(number),
    separateSeconds: orNull(number),
    recomputation: oneOf('none', 'blocks'),
    precision: oneOf('float32', 'bfloat16'),
    basePrecision: oneOf('float32', 'bfloat16', 'int8', 'nf4'),
    instructionSet: name,
  },
  checkpoint: { step: count, path, sizeBytes: count, manifestSha256: sha256, seconds: number },
  sample: { step: count, prompt: longText, text: longText },
  warning: { reason, message: longText },
};

const plannedArtifact: Shape = {
  id: (value) => typeof value === 'string' && /^[a-z][a-z0-9-]{0,62}$/.test(value),
  format: oneOf('huggingFace', 'peft', 'gguf'),
  weightType: oneOf('float32', 'float16', 'bfloat16', 'q8_0'),
  cycle: orNull(count),
  step: count,
};

const trainerMessages: Readonly<Record<string, Shape>> = {
  started: {
    number: count,
    step: count,
    execution: object({
      engineVersion: name,
      backend: name,
      instructionSet: name,
      threadCount: count,
      precision: oneOf('float32', 'bfloat16', 'int8Base', 'nf4Base'),
      datasetSha256: sha256,
      basePrecision: oneOf('float32', 'bfloat16', 'int8', 'nf4'),
      graphs,
      baseWeightsSha256: orNull(sha256),
      specSha256: sha256,
      nodeVersion: name,
      tfjsVersion: name,
    }),
  },
  event: {
    number: count,
    timeMs: count,
    body: (value) =>
      isRecord(value) &&
      typeof value.kind === 'string' &&
      Object.hasOwn(bodies, value.kind) &&
      object(bodies[value.kind]!)(value),
  },
  checkpointCorrupt: { number: count, path, problem: longText },
  artifact: {
    number: count,
    artifact: object({ ...plannedArtifact, castErrorMax: number, files }),
  },
  exportFailed: {
    number: count,
    artifact: object(plannedArtifact),
    failure: object({ reason, message: longText }),
  },
  saved: { number: count, ticket: count, problem: orNull(longText) },
  finished: { number: count, outcome: oneOf('succeeded', 'stopped') },
  failed: { number: count, reason, message: longText },
};

const taskMessages: Readonly<Record<string, Shape>> = {
  part: { value: (value) => value !== undefined },
  result: { value: (value) => value !== undefined },
  failed: { reason, message: longText },
};

/**
 * A message of a trainer, or undefined: the child runs native code on files of strangers, so what it says is outside data.
 */
export function parseTrainerMessage(value: unknown): TrainerMessage | undefined {
  return matches(value, trainerMessages) ? (value as TrainerMessage) : undefined;
}

/** A message of a task; what is in a part or a result is for its caller to use as text and numbers only. */
export function parseTaskMessage(value: unknown): TaskMessage | undefined {
  return matches(value, taskMessages) ? (value as TaskMessage) : undefined;
}

/** What a task exported, or undefined. */
export function parseExportResult(value: unknown): ExportResult | undefined {
  const isResult = object({ files, castErrorMax: number, cycle: orNull(count) });
  return isResult(value) ? (value as ExportResult) : undefined;
}

function matches(value: unknown, shapes: Readonly<Record<string, Shape>>): boolean {
  if (!isRecord(value) || typeof value.type !== 'string' || !Object.hasOwn(shapes, value.type)) return false;
  return object(shapes[value.type]!)(value);
}

function fileName(value: unknown): boolean {
  return typeof value === 'string' && /^(base\/)?[A-Za-z0-9][A-Za-z0-9._-]{0,254}$/.test(value);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function own(value: Record<string, unknown>, key: string): unknown {
  return Object.hasOwn(value, key) ? value[key] : undefined;
}
