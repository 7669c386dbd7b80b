import type {
  GetMetricHistoryResponse,
  MetricPoint,
  RestartEvent,
  Spread,
  StepEvent,
  EvaluationEvent,
} from '@relora/sdk/contract';
import type { Json } from './api.js';

export const metrics = [
  'METRIC_LOSS',
  'METRIC_EVALUATION_LOSS',
  'METRIC_BITS_PER_BYTE',
  'METRIC_LEARNING_RATE',
  'METRIC_GRADIENT_NORM',
  'METRIC_TOKENS_PER_SECOND',
  'METRIC_RESIDENT_BYTES',
  'METRIC_EFFECTIVE_RANK',
  'METRIC_DELTA_NORM',
] as const;
export type MetricName = (typeof metrics)[number];

export interface Point {
  /** Steps taken. */
  step: number;
  tokens: number;
  /** Seconds spent in steps and restarts. */
  seconds: number;
  mean: number;
  min: number;
  max: number;
}

export const axes = ['steps', 'tokens', 'hours'] as const;
export type Axis = (typeof axes)[number];

export function placeOf(point: Pick<Point, 'step' | 'tokens' | 'seconds'>, axis: Axis): number {
  return axis === 'steps' ? point.step : axis === 'tokens' ? point.tokens : point.seconds / 3600;
}

export function toPoint({ step, trainedTokens, trainingSeconds, mean, min, max }: Json<MetricPoint>): Point {
  return {
    step: Number(step),
    tokens: Number(trainedTokens),
    seconds: Number(trainingSeconds),
    mean: Number(mean),
    min: Number(min),
    max: Number(max),
  };
}

/** The curves of one job: the server's history, and what the watch added since. */
export class JobSeries {
  private readonly points = new Map<MetricName, Point[]>(metrics.map((metric) => [metric, []]));
  /** Where the run is now. */
  private now = { step: 0, tokens: 0, seconds: 0 };

  replace({ series }: Json<GetMetricHistoryResponse>): void {
    for (const metric of metrics) this.points.set(metric, []);
    for (const { metric, points } of series) this.points.set(metric as MetricName, points.map(toPoint));
    const last = [...this.points.values()].flatMap((points) => points.slice(-1));
    this.now = last.reduce((end, point) => (point.step > end.step ? point : end), {
      step: 0,
      tokens: 0,
      seconds: 0,
    });
  }

  of(metric: MetricName): readonly Point[] {
    return this.points.get(metric)!;
  }

  get length(): number {
    return this.of('METRIC_LOSS').length;
  }

  addStep(event: Json<StepEvent>): void {
    const step = Number(event.step) + 1;
    // An event of a fast job stands for several steps, and old ones are folded further.
    const { span } = event;
    const seconds = Number(span?.seconds ?? event.stepSeconds);
    // Steps that a thinned watch left out took time, too.
    const from = span === undefined ? step - 1 : Number(span.firstStep);
    // These steps are repeated after a crash: what was drawn of them no longer counts.
    if (from < this.now.step) this.cutAt(from + 1);
    const left = Math.max(0, from - this.now.step);
    const secondsEach = seconds / Math.max(1, step - from);
    this.now = {
      step,
      tokens: Number(event.trainedTokens),
      seconds: this.now.seconds + seconds + left * secondsEach,
    };
    if (span !== undefined) {
      this.addSpread('METRIC_LOSS', span.loss);
      this.addSpread('METRIC_LEARNING_RATE', span.learningRate);
      this.addSpread('METRIC_GRADIENT_NORM', span.gradientNorm);
      this.addSpread('METRIC_RESIDENT_BYTES', span.residentBytes);
      this.addSpread('METRIC_TOKENS_PER_SECOND', span.tokensPerSecond);
      return;
    }
    if (event.skipped || event.omitted) return;
    this.add('METRIC_LOSS', Number(event.loss));
    this.add('METRIC_LEARNING_RATE', Number(event.learningRate));
    this.add('METRIC_GRADIENT_NORM', Number(event.gradientNorm));
    this.add('METRIC_RESIDENT_BYTES', Number(event.residentBytes));
    if (seconds > 0) this.add('METRIC_TOKENS_PER_SECOND', Number(event.tokenCount) / seconds);
  }

  addEvaluation({ loss, bitsPerByte }: Json<EvaluationEvent>): void {
    this.add('METRIC_EVALUATION_LOSS', Number(loss));
    this.add('METRIC_BITS_PER_BYTE', Number(bitsPerByte));
  }

  addRestart({ effectiveRank, deltaNorm }: Json<RestartEvent>): void {
    this.add('METRIC_EFFECTIVE_RANK', Number(effectiveRank));
    this.add('METRIC_DELTA_NORM', Number(deltaNorm));
  }

  private addSpread(metric: MetricName, spread: Json<Spread> | undefined): void {
    if (spread === undefined || Number(spread.valueCount) === 0) return;
    this.add(metric, Number(spread.mean), Number(spread.min), Number(spread.max));
  }

  private add(metric: MetricName, mean: number, min = mean, max = mean): void {
    if (!Number.isFinite(mean)) return;
    const points = this.points.get(metric)!;
    const point = { ...this.now, mean, min, max };
    if (points.at(-1)?.step === point.step) points.pop();
    points.push(point);
  }

  private cutAt(step: number): void {
    for (const [metric, points] of this.points)
      this.points.set(
        metric,
        points.filter((point) => point.step < step),
      );
    const last = this.of('METRIC_LOSS').at(-1);
    this.now = last ?? { step: 0, tokens: 0, seconds: 0 };
  }
}
