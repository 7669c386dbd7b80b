import type { Spread } from '@relora/engine/plan';

/** What a job is measured by. */
export const metrics = [
  'loss',
  'evaluationLoss',
  'bitsPerByte',
  'learningRate',
  'gradientNorm',
  'tokensPerSecond',
  'residentBytes',
  'effectiveRank',
  'deltaNorm',
  'logitChange',
] as const;
export type Metric = (typeof metrics)[number];

/** Where in a run a value was measured. */
export interface Place {
  /** Steps taken, the one that gave the value included. */
  step: number;
  trainedTokens: number;
  /** Seconds in steps and restarts. */
  trainingSeconds: number;
}

/** The values of some steps next to each other; the place is that of the last. */
export interface MetricPoint extends Place {
  last: number;
  mean: number;
  min: number;
  max: number;
  valueCount: number;
}

export interface MetricSeries {
  points: MetricPoint[];
  /** Values that were not finite; they are in no point. */
  nonfiniteCount: number;
}

type Bucket = Omit<MetricPoint, 'mean'> & { index: number; sum: number };

/** Gathers the values of one metric, the last first, in buckets of so many steps; keeps the buckets alone. */
export class SeriesFromTheEnd {
  /** The last bucket first. */
  private readonly buckets: Bucket[] = [];
  private last: Bucket | undefined;
  private nonfiniteCount = 0;

  constructor(private readonly bucketStepCount: number) {}

  /** Adds what some steps next to each other came to; the place is that of the last of them. */
  add(spread: Spread, place: Place): void {
    this.nonfiniteCount += spread.nonfiniteCount;
    const { valueCount } = spread;
    if (valueCount === 0) return;
    // The step that gave a value is counted: the first bucket has as many steps as the others, and whole spans.
    const index = Math.floor(Math.max(0, place.step - 1) / this.bucketStepCount);
    const { last: bucket } = this;
    if (bucket?.index === index) {
      bucket.sum += spread.mean * valueCount;
      if (spread.min < bucket.min) bucket.min = spread.min;
      if (spread.max > bucket.max) bucket.max = spread.max;
      bucket.valueCount += valueCount;
      return;
    }
    this.last = {
      step: place.step,
      trainedTokens: place.trainedTokens,
      trainingSeconds: place.trainingSeconds,
      index,
      last: spread.last,
      sum: spread.mean * valueCount,
      min: spread.min,
      max: spread.max,
      valueCount,
    };
    this.buckets.push(this.last);
  }

  /** `trainingSeconds` of every place that was added counts back from here. */
  finish(totalSeconds: number): MetricSeries {
    const points = this.buckets
      .map(({ index: _, sum, ...bucket }): MetricPoint => ({
        ...bucket,
        mean: sum / bucket.valueCount,
        // Sums of the other order may miss zero by a rounding.
        trainingSeconds: Math.max(0, totalSeconds - bucket.trainingSeconds),
      }))
      .reverse();
    return { points, nonfiniteCount: this.nonfiniteCount };
  }
}
