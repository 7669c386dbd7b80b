import {
  spanOf,
  targetModules,
  type DatasetEvaluation,
  type NamedEvaluation,
  type Spread,
} from '@relora/engine/plan';
import type { Gauge } from 'prom-client';
import { isTerminal, type Job, type JobEvent, type JobEventBody } from '../jobs/job.js';
import type { JobJournal } from '../jobs/jobJournal.js';
import type { Supervisor } from '../trainer/supervisor.js';
import type { Metrics } from './metrics.js';

/** How long the last values of a stopped job can still be scraped. */
const keptMs = 5 * 60_000;
/** Maximum number of jobs with series, even if jobs are short: the oldest lose theirs. */
const seriesMax = 64;
/** Weight of a new loss in the smoothed one. */
const smoothing = 0.02;

interface Expiry {
  /** The last one that began here. */
  attempt: number;
  /** Null while it runs. */
  expiresMs: number | null;
}

/** Updates metrics from the events of the journal, so that Prometheus and watchers see the same values. */
export class JobMetrics {
  private readonly perJob: Gauge<string>[];
  private readonly perModule: Gauge<string>[];
  private readonly perEvaluation: Gauge<string>[];
  /** When the series of a job are dropped, by job id, in the order in which jobs last began. */
  private readonly expiry = new Map<string, Expiry>();
  private readonly smoothed = new Map<string, number>();
  /** What each job was evaluated on. */
  private readonly datasets = new Map<string, readonly DatasetEvaluation[]>();
  /** Names of each job's evaluations: as many as in its specification. */
  private readonly named = new Map<string, Set<string>>();
  /** Of jobs that were queued here and not claimed yet. */
  private readonly queuedSince = new Map<string, number>();

  constructor(private readonly metrics: Metrics) {
    this.perJob = Object.entries(metrics).flatMap(([key, metric]) =>
      /^job[A-Z]/.test(key) ? [metric as Gauge<string>] : [],
    );
    const { moduleDeltaNorm, moduleEffectiveRank, moduleSingularValues } = metrics;
    this.perModule = [moduleDeltaNorm, moduleEffectiveRank, moduleSingularValues];
    this.perEvaluation = [
      metrics.namedEvaluationLoss,
      metrics.namedEvaluationAccuracy,
      metrics.namedEvaluationNormalizedAccuracy,
    ];
    for (const outcome of ['succeeded', 'failed', 'cancelled']) metrics.jobsFinished.inc({ outcome }, 0);
  }

  /** Returns the function that ends it. */
  follow(journal: JobJournal, supervisor: Supervisor): () => void {
    const ends = [
      journal.onAppended((job, events) => {
        for (const event of events) this.count(job, event);
      }),
      // Another server's events are not counted here: how long a job waited for it is not known.
      journal.onChanged((jobId, state) => {
        if (jobId !== null && state !== 'queued') this.queuedSince.delete(jobId);
      }),
      supervisor.onExit(({ jobId, attempt, outcome }) => {
        if (outcome === 'crashed') this.metrics.crashes.inc();
        // A job that another server took over gets no further state here. One that continues here already has its next attempt.
        const entry = this.expiry.get(jobId);
        if (entry?.attempt === attempt) entry.expiresMs ??= Date.now() + keptMs;
      }),
    ];
    return () => ends.forEach((end) => end());
  }

  /** Drops the series of jobs that stopped some minutes ago; called before a scrape. */
  forgetOld(nowMs = Date.now()): void {
    for (const [jobId, { expiresMs }] of this.expiry) {
      if (expiresMs !== null && (expiresMs <= nowMs || this.expiry.size > seriesMax)) this.forget(jobId);
    }
  }

  private forget(jobId: string): void {
    this.expiry.delete(jobId);
    this.smoothed.delete(jobId);
    for (const gauge of this.perJob) gauge.remove({ job_id: jobId });
    for (const { dataset } of this.datasets.get(jobId) ?? [])
      for (const gauge of [this.metrics.datasetEvaluationLoss, this.metrics.datasetEpochs])
        gauge.remove({ job_id: jobId, dataset });
    this.datasets.delete(jobId);
    for (const evaluation of this.named.get(jobId) ?? [])
      for (const gauge of this.perEvaluation) gauge.remove({ job_id: jobId, evaluation });
    this.named.delete(jobId);
    for (const gauge of this.perModule)
      for (const module of targetModules) gauge.remove({ job_id: jobId, module });
  }

  private count(job: Job, event: JobEvent): void {
    const { metrics } = this;
    const { body } = event;
    const series = { job_id: job.id };
    metrics.events.inc();
    switch (body.kind) {
      case 'state':
        return this.countState(job, event, body);
      case 'step':
        metrics.jobStep.set(series, body.step + 1);
        metrics.jobSteps.set(series, job.progress.stepCount);
        this.countSteps(series, body);
        if (body.omitted) return;
        metrics.jobLearningRate.set(series, body.learningRate);
        metrics.jobGradientNorm.set(series, body.gradientNorm);
        metrics.jobTokens.set(series, body.trainedTokens);
        metrics.jobMemory.set(series, body.residentBytes);
        metrics.jobStepTime.set(series, event.timeMs / 1000);
        if (job.progress.tokensPerSecond !== null)
          metrics.jobTokenRate.set(series, job.progress.tokensPerSecond);
        return;
      case 'evaluation':
        metrics.evaluationDuration.observe(body.seconds);
        metrics.jobEvaluationLoss.set(series, body.loss);
        metrics.jobBitsPerByte.set(series, body.bitsPerByte);
        return this.countDatasets(series, body.datasets ?? []);
      case 'namedEvaluation':
        metrics.evaluationDuration.observe(body.seconds);
        return this.countNamed(job.id, body);
      case 'restart':
        return this.countRestart(series, body);
      case 'checkpoint':
        metrics.checkpoints.inc();
        metrics.checkpointDuration.observe(body.seconds);
        metrics.jobCheckpointDuration.set(series, body.seconds);
        metrics.jobCheckpointBytes.set(series, body.sizeBytes);
        metrics.jobCheckpointTime.set(series, event.timeMs / 1000);
        return;
      case 'warning':
        metrics.warnings.inc();
        return;
      case 'artifact':
      case 'plan':
      case 'update':
      case 'stop':
      case 'documents':
      case 'sample':
        return;
    }
  }

  private countState(job: Job, event: JobEvent, body: JobEventBody & { kind: 'state' }): void {
    const { metrics } = this;
    if (body.from === null) metrics.jobsCreated.inc();
    if (body.to === 'queued') this.queuedSince.set(job.id, event.timeMs);
    else {
      const since = this.queuedSince.get(job.id);
      this.queuedSince.delete(job.id);
      if (body.to === 'starting' && since !== undefined)
        metrics.queueWait.observe((event.timeMs - since) / 1000);
    }
    if (body.to === 'starting') {
      metrics.attempts.inc();
      this.expiry.delete(job.id); // so that it comes last: the map is in the order of beginning
      this.expiry.set(job.id, { attempt: event.attempt, expiresMs: null });
      metrics.jobAttemptTime.set({ job_id: job.id }, event.timeMs / 1000);
      metrics.jobStepsSkipped.set({ job_id: job.id }, 0);
      metrics.jobSteps.set({ job_id: job.id }, job.progress.stepCount);
      metrics.jobStep.set({ job_id: job.id }, job.progress.step);
      metrics.jobRestarts.set({ job_id: job.id }, job.progress.restartCount);
    } else if (body.to !== 'running') {
      const entry = this.expiry.get(job.id);
      if (entry !== undefined) entry.expiresMs = event.timeMs + keptMs;
    }
    if (isTerminal(body.to)) metrics.jobsFinished.inc({ outcome: body.to });
  }

  private countDatasets({ job_id }: { job_id: string }, datasets: readonly DatasetEvaluation[]): void {
    this.datasets.set(job_id, datasets);
    for (const { dataset, loss, tokenCount, epochs } of datasets) {
      if (tokenCount > 0) this.metrics.datasetEvaluationLoss.set({ job_id, dataset }, loss);
      this.metrics.datasetEpochs.set({ job_id, dataset }, epochs);
    }
  }

  private countNamed(job_id: string, { name: evaluation, dataset, choices }: NamedEvaluation): void {
    const { metrics } = this;
    this.named.set(job_id, (this.named.get(job_id) ?? new Set()).add(evaluation));
    const series = { job_id, evaluation };
    if (dataset !== undefined) metrics.namedEvaluationLoss.set(series, dataset.loss);
    if (choices === undefined) return;
    metrics.namedEvaluationAccuracy.set(series, choices.accuracy);
    metrics.namedEvaluationNormalizedAccuracy.set(series, choices.normalizedAccuracy);
  }

  private countRestart(series: { job_id: string }, body: JobEventBody & { kind: 'restart' }): void {
    const { metrics } = this;
    metrics.restarts.inc();
    metrics.restartDuration.observe(body.seconds);
    metrics.jobRestarts.set(series, body.restart);
    metrics.jobDeltaNorm.set(series, body.deltaNorm);
    metrics.jobLogitChange.set(series, body.logitChangeMax);
    metrics.jobLogitTolerance.set(series, body.logitChangeTolerance);
    metrics.jobMergeLossBefore.set(series, body.lossBefore);
    metrics.jobMergeLossAfter.set(series, body.lossAfter);
    metrics.jobRestartRateBefore.set(series, body.learningRateBefore);
    metrics.jobRestartRateAfter.set(series, body.learningRateAfter);
    metrics.jobEffectiveRank.set(series, body.effectiveRank);
    metrics.jobMomentsZeroed.set(series, body.momentsZeroedRatio);
    for (const { module, ...figures } of body.modules) {
      metrics.moduleDeltaNorm.set({ ...series, module }, figures.deltaNorm);
      metrics.moduleEffectiveRank.set({ ...series, module }, figures.effectiveRank);
      metrics.moduleSingularValues.set({ ...series, module }, figures.rankAboveOnePercent);
    }
  }

  /** Counts one step, or those of a span. */
  private countSteps(series: { job_id: string }, body: JobEventBody & { kind: 'step' }): void {
    const { metrics } = this;
    const { firstStep, omittedCount, skippedCount, tokenCount, seconds, loss } = spanOf(body);
    const stepCount = body.step - firstStep + 1 - omittedCount;
    if (stepCount === 0) return;
    metrics.steps.inc(stepCount);
    metrics.tokens.inc(tokenCount);
    for (let count = 0; count < stepCount; count++) metrics.stepDuration.observe(seconds / stepCount);
    metrics.stepsSkipped.inc(skippedCount);
    if (skippedCount > 0) metrics.jobStepsSkipped.inc(series, skippedCount);
    const lossCount = stepCount - skippedCount;
    if (lossCount > 0 && loss.valueCount > 0) this.setLoss(series.job_id, loss, lossCount);
  }

  private setLoss(jobId: string, { last, mean }: Spread, stepCount: number): void {
    const before = this.smoothed.get(jobId);
    const after = before === undefined ? mean : before + (1 - (1 - smoothing) ** stepCount) * (mean - before);
    this.smoothed.set(jobId, after);
    this.metrics.jobLoss.set({ job_id: jobId }, last);
    this.metrics.jobLossSmoothed.set({ job_id: jobId }, after);
  }
}
