import { Metric, type ComparedJob, type MetricPoint } from '@relora/sdk';
import { quantity, timeTaken } from './format.js';
import type { PlotLine } from './plotScale.js';

/** Possible x axes of curves. */
export const plotAxes = {
  step: { name: 'steps', place: ({ step }: MetricPoint) => step, show: String },
  tokens: { name: 'tokens', place: ({ trainedTokens }: MetricPoint) => trainedTokens, show: quantity },
  seconds: {
    name: 'training time',
    place: ({ trainingSeconds }: MetricPoint) => trainingSeconds,
    show: timeTaken,
  },
} as const;
export type PlotAxis = keyof typeof plotAxes;

/** Metrics that can be drawn. */
export const plotMetrics = {
  'held-out': { metric: Metric.EVALUATION_LOSS, title: 'held-out loss' },
  loss: { metric: Metric.LOSS, title: 'training loss' },
  'bits-per-byte': { metric: Metric.BITS_PER_BYTE, title: 'held-out bits per byte' },
  'learning-rate': { metric: Metric.LEARNING_RATE, title: 'learning rate' },
  'gradient-norm': { metric: Metric.GRADIENT_NORM, title: 'gradient norm' },
  'effective-rank': { metric: Metric.EFFECTIVE_RANK, title: 'effective rank of the change' },
  'tokens-per-second': { metric: Metric.TOKENS_PER_SECOND, title: 'tokens per second' },
} as const;
export type PlotMetric = keyof typeof plotMetrics;

/** The curve of one job; a point is the mean of its steps, placed at the last of them. */
export function curveOf({ series }: ComparedJob, label: string, metric: Metric, axis: PlotAxis): PlotLine {
  const points = series.find((each) => each.metric === metric)?.points ?? [];
  const { place } = plotAxes[axis];
  return { label, points: points.map((point) => [place(point), point.mean] as const) };
}
