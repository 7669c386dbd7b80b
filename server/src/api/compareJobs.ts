import { countParameters } from '@relora/engine/plan';
import type { ComparedJob, CompareJobsRequest, CompareJobsResponse } from '@relora/sdk/contract';
import { quote } from '../errors.js';
import type { Job } from '../jobs/job.js';
import { standingAgainst } from '../jobs/jobComparison.js';
import { bucketStepCountFor, readHistory, type MetricHistory } from '../jobs/metricHistory.js';
import type { Metric } from '../jobs/metricSeries.js';
import { comparisonWarningsOf, type Contender } from './comparisonWarnings.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { parseMetrics, parsePointsMax, toSeries } from './metricHistory.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { datasetIdOf, parseJobName } from './resourceNames.js';
import { settingDifferences } from './settingDifferences.js';
import { toNamedEvaluation } from './toProto.js';
import type { CallContext } from '../grpc/service.js';
import { nameOf } from '../store/tenantIds.js';

/** Compares jobs. Their journals are read one after the other, and the memory for this does not grow with their length. */
export async function compareJobs(
  parts: Pick<ApiParts, 'store' | 'journal' | 'datasets' | 'config'>,
  request: CompareJobsRequest,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<CompareJobsResponse> {
  const checks = new FieldChecks();
  const names = parseNames(checks, request, parts.config.comparedJobsMax);
  const asked = parseMetrics(checks, request.metrics);
  const seriesCount = asked.length * Math.max(1, names.length);
  const pointsMax = parsePointsMax(checks, request.pointsMax, seriesCount, parts.config);
  checks.throwIfWrong();

  const jobs: Job[] = [];
  for (const name of names) {
    const jobId = parseJobName(caller.tenant, 'names', name);
    jobs.push(await requireJob(parts.store, jobId));
  }
  const bucketStepCount = Math.max(...jobs.map((job) => bucketStepCountFor(job, pointsMax)));
  const contenders: Contender[] = [];
  for (const job of jobs) {
    contenders.push({
      job,
      history: await readHistory(parts.journal, job, bucketStepCount, signal),
      prepared:
        (await parts.datasets.findHead(datasetIdOf(caller.tenant, job.spec.dataset) ?? ''))?.prepared ?? null,
    });
  }
  const reference = referenceOf(contenders, request.reference);
  return {
    jobs: contenders.map(({ job, history }) => toComparedJob(job, history, reference.history, asked)),
    reference: `jobs/${nameOf(reference.job.id)}`,
    differences: settingDifferences(jobs.map(({ spec }) => spec)),
    warnings: comparisonWarningsOf(contenders),
    bucketStepCount,
  };
}

function parseNames(
  checks: FieldChecks,
  { names, reference }: CompareJobsRequest,
  jobsMax: number,
): readonly string[] {
  if (names.length < 2 || names.length > jobsMax) {
    // Checked before anything is done with the names: there may be a hundred thousand.
    checks.add('names', `2 to ${jobsMax} jobs`, names.length);
    return [];
  }
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) checks.add('names', 'each job once', quote(twice));
  if (reference !== '' && !names.includes(reference))
    checks.add('reference', 'one of names', quote(reference));
  return names;
}

function referenceOf(contenders: readonly Contender[], name: string): Contender {
  return (
    contenders.find(({ job }) => `jobs/${nameOf(job.id)}` === name) ??
    contenders.find(({ job }) => job.spec.kind === 'fullRank') ??
    contenders[0]!
  );
}

function toComparedJob(
  job: Job,
  history: MetricHistory,
  reference: MetricHistory,
  asked: readonly Metric[],
): ComparedJob {
  const { spec, progress } = job;
  const { lastEvaluation, bestEvaluation, trainingSeconds } = history;
  const { difference, reached } = standingAgainst(reference, history);
  const memory = history.series.residentBytes.points;
  return {
    name: `jobs/${nameOf(job.id)}`,
    displayName: job.displayName,
    labels: job.labels,
    state: enums.JobState.to[job.state],
    kind: enums.JobKind.to[spec.kind],
    rank: spec.adapter?.rank ?? 0,
    cycleStepCount: spec.kind === 'relora' ? (spec.adapter?.cycleStepCount ?? 0) : 0,
    trainableParameterCount: countParameters(spec).trainable,
    peakLearningRate: spec.learningRate.peak,
    seed: spec.seed,
    step: progress.step,
    stepCount: progress.stepCount,
    trainedTokens: history.trainedTokens,
    trainingSeconds,
    tokensPerSecond: trainingSeconds > 0 ? history.countedTokens / trainingSeconds : undefined,
    peakResidentBytes: memory.length > 0 ? Math.max(...memory.map(({ max }) => max)) : undefined,
    restartCount: progress.restartCount,
    effectiveRank: history.series.effectiveRank.points.at(-1)?.last,
    evaluationLoss: lastEvaluation?.loss,
    evaluationStep: lastEvaluation?.step,
    evaluationTokenCount: lastEvaluation?.tokenCount,
    perplexity: lastEvaluation?.perplexity,
    bitsPerByte: lastEvaluation?.bitsPerByte,
    bestEvaluationLoss: bestEvaluation?.loss,
    bestEvaluationStep: bestEvaluation?.step,
    evaluationLossDifference: difference?.loss,
    differenceTokens: difference?.tokens,
    tokensToReferenceLoss: reached?.tokens,
    secondsToReferenceLoss: reached?.seconds,
    evaluationDatasets: lastEvaluation?.datasets ?? [],
    evaluations: Object.values(progress.evaluations ?? {}).map(toNamedEvaluation),
    series: toSeries(history, asked),
  };
}
