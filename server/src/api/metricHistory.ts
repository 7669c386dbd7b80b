import type { GetMetricHistoryRequest, GetMetricHistoryResponse, MetricSeries } from '@relora/sdk/contract';
import type { Config } from '../config.js';
import type { Job } from '../jobs/job.js';
import { bucketStepCountFor, readHistory, type MetricHistory } from '../jobs/metricHistory.js';
import { metrics, type Metric } from '../jobs/metricSeries.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';

/** Points of a series if a request does not say. */
const pointsDefault = 200;

/** The series of one job. */
export async function metricHistory(
  { journal, config }: Pick<ApiParts, 'journal' | 'config'>,
  job: Job,
  request: GetMetricHistoryRequest,
  signal: AbortSignal,
): Promise<GetMetricHistoryResponse> {
  const checks = new FieldChecks();
  const asked = parseMetrics(checks, request.metrics);
  const pointsMax = parsePointsMax(checks, request.pointsMax, asked.length, config);
  checks.throwIfWrong();
  const bucketStepCount = bucketStepCountFor(job, pointsMax);
  const history = await readHistory(journal, job, bucketStepCount, signal);
  return { series: toSeries(history, asked), bucketStepCount, lastSequence: job.lastSequence };
}

/** The requested metrics, in the order of the contract; all if none are requested. */
export function parseMetrics(checks: FieldChecks, values: readonly string[]): Metric[] {
  const asked = new Set(
    values
      .slice(0, 64)
      .flatMap(
        (value, index) =>
          checks.choice(
            `metrics[${index}]`,
            value,
            enums.Metric.from,
            Object.keys(enums.Metric.from).join(', '),
          ) ?? [],
      ),
  );
  if (values.length > 64) checks.add('metrics', 'at most 64 metrics', values.length);
  return asked.size === 0 ? [...metrics] : metrics.filter((metric) => asked.has(metric));
}

/** Points that each of `seriesCount` series may have; a larger number becomes the limit, as with page sizes. */
export function parsePointsMax(
  checks: FieldChecks,
  pointsMax: number,
  seriesCount: number,
  { metricPointsMax }: Pick<Config, 'metricPointsMax'>,
): number {
  if (pointsMax < 0) checks.add('points_max', `a whole number from 0 to ${metricPointsMax}`, pointsMax);
  const allowed = Math.max(1, Math.floor(metricPointsMax / seriesCount));
  return Math.min(pointsMax <= 0 ? pointsDefault : pointsMax, allowed);
}

export function toSeries({ series }: MetricHistory, asked: readonly Metric[]): MetricSeries[] {
  return asked.map((metric) => ({ metric: enums.Metric.to[metric], ...series[metric] }));
}
