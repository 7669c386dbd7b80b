import { count, number, object, type ObjectOf } from './shapes.js';

/** What the values of some steps come to; 0 throughout where there is none. Values that are not finite are counted alone. */
export const spread = {
  last: number,
  min: number,
  max: number,
  mean: number,
  valueCount: count,
  nonfiniteCount: count,
};
export type Spread = ObjectOf<typeof spread>;

/** The curves of a run that have a value at each step. */
export const stepMetrics = [
  'loss',
  'gradientNorm',
  'learningRate',
  'tokensPerSecond',
  'residentBytes',
] as const;
export type StepMetric = (typeof stepMetrics)[number];

/** What a step event stands for where it stands for several steps next to each other; its other fields are the last one's. */
export const stepSpan = {
  firstStep: count,
  /** Of these steps so many were skipped, and so many omitted. */
  skippedCount: count,
  omittedCount: count,
  /** Of all of them. */
  tokenCount: count,
  seconds: number,
  loss: object(spread),
  gradientNorm: object(spread),
  learningRate: object(spread),
  tokensPerSecond: object(spread),
  residentBytes: object(spread),
};
export type StepSpan = ObjectOf<typeof stepSpan>;

/** A step event as far as spans are concerned. */
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

/** One event in place of two, the steps of the second being those that follow the first's. Nothing is lost of the least, the greatest, the mean and the last. */
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

/** A single step is a span of one. */
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
    // An omitted step computed nothing that could be shown.
    ...bySpread((metric) => (omitted ? none : spreadOf(values[metric]))),
  };
}

const none: Spread = { last: 0, min: 0, max: 0, mean: 0, valueCount: 0, nonfiniteCount: 0 };

/** Of a single value. */
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
