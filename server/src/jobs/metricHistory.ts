import { setImmediate as nextTurn } from 'node:timers/promises';
import { spanOf, spreadOf, stepMetrics } from '@relora/engine/plan';
import type { Job, JobEventBody } from './job.js';
import type { JobJournal } from './jobJournal.js';
import { metrics, SeriesFromTheEnd, type Metric, type MetricSeries, type Place } from './metricSeries.js';

/** A run according to its journal, up to `job.lastSequence`. */
export interface MetricHistory {
  series: Record<Metric, MetricSeries>;
  trainedTokens: number;
  /** Seconds in steps and restarts: without evaluations, checkpoints, pauses and work lost in crashes. */
  trainingSeconds: number;
  /** Tokens of the steps in the journal, without those before a checkpoint of another job. */
  countedTokens: number;
  lastEvaluation: Evaluation | null;
  /** The one with the lowest loss. */
  bestEvaluation: Evaluation | null;
}

type Evaluation = Extract<JobEventBody, { kind: 'evaluation' }>;

const eventsPerPage = 1000;

/** Steps per bucket, so that a run of this length has at most `pointsMax` points. */
export function bucketStepCountFor(job: Job, pointsMax: number): number {
  return Math.ceil((job.progress.step + 1) / pointsMax);
}

/**
 * Reads the series of a job from its journal, page by page, so that a week of steps takes no more memory than an hour; other calls are
 * served between the pages. Throws the signal's reason when that aborts.
 *
 * It reads from the end. Steps that were repeated after a crash then need no memory either: an event counts if its step is earlier than all
 * that were read before it.
 */
export async function readHistory(
  journal: JobJournal,
  job: Job,
  bucketStepCount: number,
  signal: AbortSignal,
): Promise<MetricHistory> {
  const reader = new BackwardReader(job, bucketStepCount);
  const pages = journal.readBackwards(job.id, job.lastSequence, {
    stepCount: bucketStepCount,
    pageEvents: eventsPerPage,
  });
  for await (const bodies of pages) {
    signal.throwIfAborted();
    for (const body of bodies) reader.take(body);
    await nextTurn();
  }
  return reader.finish();
}

/** Takes the events of a job, the last first. */
class BackwardReader {
  private readonly series: Record<Metric, SeriesFromTheEnd>;
  /** The lowest step that was read; events from it on were repeated. Begins with the job's present step. */
  private firstStep: number;
  private firstEvaluation = Infinity;
  private firstRestart = Infinity;
  /** Seconds in the steps and restarts that were read. */
  private seconds = 0;
  private tokens = 0;
  private trainedTokens: number | null = null;
  private lastEvaluation: Evaluation | null = null;
  private bestEvaluation: Evaluation | null = null;
  /** Values measured between two steps: the step before them, which is read next, has their number of tokens. */
  private waiting: { metric: Metric; value: number; step: number; trainingSeconds: number }[] = [];

  constructor(
    private readonly job: Job,
    bucketStepCount: number,
  ) {
    this.firstStep = job.progress.step;
    this.series = Object.fromEntries(
      metrics.map((metric) => [metric, new SeriesFromTheEnd(bucketStepCount)]),
    ) as Record<Metric, SeriesFromTheEnd>;
  }

  take(body: JobEventBody): void {
    switch (body.kind) {
      case 'step':
        // A span ends wherever a run can resume, so it is superseded as a whole or not at all.
        if (body.step < this.firstStep) this.takeStep(body);
        break;
      case 'evaluation': {
        const { step, loss, bitsPerByte } = body;
        if (step > this.firstStep || step >= this.firstEvaluation) break;
        this.firstEvaluation = step;
        this.lastEvaluation ??= body;
        if (loss <= (this.bestEvaluation?.loss ?? Infinity)) this.bestEvaluation = body;
        this.wait(step, { evaluationLoss: loss, bitsPerByte });
        break;
      }
      case 'restart': {
        const { step, effectiveRank, deltaNorm, logitChangeMax, seconds } = body;
        if (step > this.firstStep || step >= this.firstRestart) break;
        this.firstRestart = step;
        this.wait(step, { effectiveRank, deltaNorm, logitChange: logitChangeMax });
        this.seconds += seconds;
        break;
      }
      default:
        break;
    }
  }

  finish(): MetricHistory {
    const { batch } = this.job.spec;
    const firstStep = this.job.origin?.step ?? 0;
    this.addWaiting(firstStep * batch.sequenceCount * batch.sequenceLength);
    const series = Object.fromEntries(
      metrics.map((metric) => [metric, this.series[metric].finish(this.seconds)]),
    ) as Record<Metric, MetricSeries>;
    return {
      series,
      trainedTokens: this.trainedTokens ?? this.job.progress.trainedTokens,
      trainingSeconds: this.seconds,
      countedTokens: this.tokens,
      lastEvaluation: this.lastEvaluation,
      bestEvaluation: this.bestEvaluation,
    };
  }

  private takeStep(body: Extract<JobEventBody, { kind: 'step' }>): void {
    const { trainedTokens } = body;
    const span = spanOf(body);
    this.firstStep = span.firstStep;
    if (span.omittedCount > body.step - span.firstStep) return; // only omitted steps: there is nothing to show
    this.trainedTokens ??= trainedTokens;
    this.addWaiting(trainedTokens);
    const place: Place = { step: body.step + 1, trainedTokens, trainingSeconds: this.seconds };
    for (const metric of stepMetrics) this.series[metric].add(span[metric], place);
    this.seconds += span.seconds;
    this.tokens += span.tokenCount;
  }

  private wait(step: number, values: Partial<Record<Metric, number>>): void {
    for (const [metric, value] of Object.entries(values))
      this.waiting.push({ metric: metric as Metric, value, step, trainingSeconds: this.seconds });
  }

  private addWaiting(trainedTokens: number): void {
    for (const { metric, value, ...place } of this.waiting)
      this.series[metric].add(spreadOf(value), { ...place, trainedTokens });
    this.waiting = [];
  }
}
