import { count, number, object, type ObjectOf } from './shapes.js';

/** Statistics of a value over several steps; all 0 if there is no value. Values that are not finite are only counted. */
export const spread = {
  last: number,
  min: number,
  max: number,
  mean: number,
  valueCount: count,
  nonfiniteCount: count,
};
export type Spread = ObjectOf<typeof spread>;

/** Metrics of a run that have a value at each step. */
export const stepMetrics = [
  'loss',
  'gradientNorm',
  'learningRate',
  'tokensPerSecond',
  'residentBytes',
] as const;
export type StepMetric = (typeof stepMetrics)[number];

/** Additional data of a step event that stands for several consecutive steps; its other fields are those of the last step. */
export const stepSpan = {
  firstStep: count,
  /** How many of these steps were skipped, and how many omitted. */
  skippedCount: count,
  omittedCount: count,
  /** Over all of these steps. */
  tokenCount: count,
  seconds: number,
  loss: object(spread),
  gradientNorm: object(spread),
  learningRate: object(spread),
  tokensPerSecond: object(spread),
  residentBytes: object(spread),
};
export type StepSpan = ObjectOf<typeof stepSpan>;

/** The fields of a step event that spans use. */
export interface SpannedStep {
  step: number;
  loss: number;
  gradientNorm: number;
  learningRate: number;
  tokenCount: number;
  stepSeconds: number;
  residentBytes: number;
  skipped: boolean;
  omitted?: boolean;
  span?: StepSpan;
}

/** Joins two events of consecutive spans into one. Minimum, maximum, mean and last value are preserved. */
export function joinSteps<Step extends SpannedStep>(first: SpannedStep, next: Step): Step {
  const [one, other] = [spanOf(first), spanOf(next)];
  return {
    ...next,
    span: {
      firstStep: one.firstStep,
      skippedCount: one.skippedCount + other.skippedCount,
      omittedCount: one.omittedCount + other.omittedCount,
      tokenCount: one.tokenCount + other.tokenCount,
      seconds: one.seconds + other.seconds,
      ...bySpread((metric) => joinSpreads(one[metric], other[metric])),
    },
  };
}

/** A single step is a span of length one. */
export function spanOf(body: SpannedStep): StepSpan {
  if (body.span !== undefined) return body.span;
  const { step, loss, gradientNorm, learningRate, tokenCount, stepSeconds, residentBytes } = body;
  const omitted = body.omitted === true;
  const values = {
    loss,
    gradientNorm,
    learningRate,
    tokensPerSecond: tokenCount / stepSeconds,
    residentBytes,
  };
  return {
    firstStep: step,
    skippedCount: body.skipped ? 1 : 0,
    omittedCount: omitted ? 1 : 0,
    tokenCount,
    seconds: stepSeconds,
    // An omitted step computed nothing.
    ...bySpread((metric) => (omitted ? none : spreadOf(values[metric]))),
  };
}

const none: Spread = { last: 0, min: 0, max: 0, mean: 0, valueCount: 0, nonfiniteCount: 0 };

/** Statistics of a single value. */
export function spreadOf(value: number): Spread {
  if (!Number.isFinite(value)) return { ...none, nonfiniteCount: 1 };
  return { last: value, min: value, max: value, mean: value, valueCount: 1, nonfiniteCount: 0 };
}

function joinSpreads(one: Spread, other: Spread): Spread {
  const nonfiniteCount = one.nonfiniteCount + other.nonfiniteCount;
  if (one.valueCount === 0) return { ...other, nonfiniteCount };
  if (other.valueCount === 0) return { ...one, nonfiniteCount };
  const valueCount = one.valueCount + other.valueCount;
  return {
    last: other.last,
    min: Math.min(one.min, other.min),
    max: Math.max(one.max, other.max),
    mean: one.mean + (other.mean - one.mean) * (other.valueCount / valueCount),
    valueCount,
    nonfiniteCount,
  };
}

function bySpread(spreadFor: (metric: StepMetric) => Spread): Record<StepMetric, Spread> {
  return Object.fromEntries(stepMetrics.map((metric) => [metric, spreadFor(metric)])) as Record<
    StepMetric,
    Spread
  >;
}
