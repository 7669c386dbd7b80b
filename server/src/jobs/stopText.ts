import type { RunSpec } from '@relora/engine/plan';
import type { JobProgress } from './job.js';

type Stop = NonNullable<JobProgress['stop']>;

/** Why a run ended before its last step, for people. */
export function stopText({ step, reason, value, limit }: Stop): string {
  return `Ended early after step ${step}: ${texts[reason](figure(value), figure(limit))}`;
}

const texts: Readonly<Record<Stop['reason'], (value: string, limit: string) => string>> = {
  patience: (value) => `the held-out loss did not fall in ${value} evaluations in a row`,
  evaluationLoss: (value, limit) => `the held-out loss ${value} is at or below ${limit}`,
  tokenCount: (value, limit) => `${value} tokens were trained on, of ${limit} that were asked for`,
  seconds: (value, limit) => `${value} seconds are over, of ${limit} that it may take`,
  deviceHours: (value, limit) => `its trainers held the device for ${value} hours, of ${limit} that they may`,
  requested: () => 'somebody asked for it (UpdateJob)',
};

/** What may still end a run before its last step; null for nothing. */
export function stopConditions({ stop }: RunSpec, { trainedTokens, stepCount }: JobProgress): string | null {
  const { patienceEvaluationCount: patience, minImprovement, evaluationLoss, tokenCount } = stop;
  const by = minImprovement > 0 ? ` by ${figure(minImprovement)}` : '';
  const conditions = [
    patience > 0 && `${patience} evaluations in a row do not lower the held-out loss${by}`,
    evaluationLoss > 0 && `the held-out loss is at or below ${figure(evaluationLoss)}`,
    tokenCount > 0 && `${tokenCount} tokens are trained on (${trainedTokens} are)`,
    stop.seconds > 0 && `${stop.seconds} seconds are over since it began`,
    stop.deviceHours > 0 && `its trainers held the device for ${figure(stop.deviceHours)} hours`,
  ].filter((text) => text !== false);
  return conditions.length === 0 ? null : `It ends before step ${stepCount} once ${conditions.join(', or ')}`;
}

/** Six digits at most. */
function figure(value: number): string {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
}
