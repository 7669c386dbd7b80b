import type { Spread, StepEvent, StepSpan } from './contract.js';

/** The span of a step event: events of fast and old steps have one; a single step becomes a span of one. */
export function spanOf(event: StepEvent): WholeSpan {
  const { span, step, skipped, omitted, tokenCount, stepSeconds } = event;
  const spreads = (valueOf: (metric: SpreadMetric) => Spread) => ({
    loss: valueOf('loss'),
    gradientNorm: valueOf('gradientNorm'),
    learningRate: valueOf('learningRate'),
    tokensPerSecond: valueOf('tokensPerSecond'),
    residentBytes: valueOf('residentBytes'),
  });
  if (span !== undefined) return { ...span, ...spreads((metric) => span[metric] ?? none) };
  const values = { ...event, tokensPerSecond: tokenCount / stepSeconds };
  return {
    firstStep: step,
    skippedCount: Number(skipped),
    omittedCount: Number(omitted),
    tokenCount,
    seconds: stepSeconds,
    // An omitted step computed nothing that could be shown.
    ...spreads((metric) => (omitted ? none : spreadOf(values[metric]))),
  };
}

type SpreadMetric = 'loss' | 'gradientNorm' | 'learningRate' | 'tokensPerSecond' | 'residentBytes';

/** A span with every spread set. */
export type WholeSpan = StepSpan & Record<SpreadMetric, Spread>;

const none: Spread = { last: 0, min: 0, max: 0, mean: 0, valueCount: 0, nonfiniteCount: 0 };

/** The spread of a single value. */
function spreadOf(value: number): Spread {
  if (!Number.isFinite(value)) return { ...none, nonfiniteCount: 1 };
  return { ...none, last: value, min: value, max: value, mean: value, valueCount: 1 };
}
