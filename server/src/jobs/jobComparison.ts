import type { MetricHistory } from './metricHistory.js';
import type { MetricPoint } from './metricSeries.js';

/** Where a run stands compared with another. */
export interface Standing {
  /** Held-out loss minus that of the reference, at the most tokens that both have trained on; null if one of them has no evaluation. */
  difference: { loss: number; tokens: number } | null;
  /** The first evaluation at or below the reference's last loss. */
  reached: { tokens: number; seconds: number } | null;
}

export function standingAgainst(reference: MetricHistory, run: MetricHistory): Standing {
  const goal = reference.lastEvaluation?.loss;
  const points = run.series.evaluationLoss.points;
  const reached = goal === undefined ? undefined : points.find(({ min }) => min <= goal);
  return {
    difference: differenceAtEqualTokens(reference.series.evaluationLoss.points, points),
    reached:
      reached === undefined ? null : { tokens: reached.trainedTokens, seconds: reached.trainingSeconds },
  };
}

function differenceAtEqualTokens(
  reference: readonly MetricPoint[],
  points: readonly MetricPoint[],
): Standing['difference'] {
  const [referenceEnd, end] = [reference.at(-1), points.at(-1)];
  if (referenceEnd === undefined || end === undefined) return null;
  const tokens = Math.min(referenceEnd.trainedTokens, end.trainedTokens);
  const [expected, found] = [lossAt(reference, tokens), lossAt(points, tokens)];
  return expected === null || found === null ? null : { loss: found - expected, tokens };
}

/** Interpolated linearly between evaluations; null before the first. */
function lossAt(points: readonly MetricPoint[], tokens: number): number | null {
  const next = points.findIndex(({ trainedTokens }) => trainedTokens >= tokens);
  const after = points[next];
  if (after === undefined) return null;
  if (after.trainedTokens === tokens) return after.last;
  const before = points[next - 1];
  if (before === undefined) return null;
  const share = (tokens - before.trainedTokens) / (after.trainedTokens - before.trainedTokens);
  return before.last + share * (after.last - before.last);
}
