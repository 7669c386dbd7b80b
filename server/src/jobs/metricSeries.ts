import type { Spread } from '@relora/engine/plan';

/** The metrics of a job. */
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
  /** Steps taken, including the one that gave the value. */
  step: number;
  trainedTokens: number;
  /** Seconds in steps and restarts. */
  trainingSeconds: number;
}

/** The values of some consecutive steps; the place is that of the last one. */
export interface MetricPoint extends Place {
  last: number;
  mean: number;
  min: number;
  max: number;
  valueCount: number;
}

export interface MetricSeries {
  points: MetricPoint[];
  /** Number of values that were not finite; no point contains them. */
  nonfiniteCount: number;
}

type Bucket = Omit<MetricPoint, 'mean'> & { index: number; sum: number };

/** Gathers the values of one metric, the last first, in buckets of a number of steps; keeps only the buckets. */
export class SeriesFromTheEnd {
  /** The last bucket first. */
  private readonly buckets: Bucket[] = [];
  private last: Bucket | undefined;
  private nonfiniteCount = 0;

  constructor(private readonly bucketStepCount: number) {}

  /** Adds the values of some consecutive steps; the place is that of the last one. */
  add(spread: Spread, place: Place): void {
    this.nonfiniteCount += spread.nonfiniteCount;
    const { valueCount } = spread;
    if (valueCount === 0) return;
    // `step` includes the step that gave the value: so the first bucket has as many steps as the others, and whole spans.
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

  /** `trainingSeconds` of the added places counts back from `totalSeconds`. */
  finish(totalSeconds: number): MetricSeries {
    const points = this.buckets
      .map(({ index: _, sum, ...bucket }): MetricPoint => ({
        ...bucket,
        mean: sum / bucket.valueCount,
        // Summing in the other order may miss zero by a rounding error.
        trainingSeconds: Math.max(0, totalSeconds - bucket.trainingSeconds),
      }))
      .reverse();
    return { points, nonfiniteCount: this.nonfiniteCount };
  }
}
