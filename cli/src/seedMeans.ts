import type { ComparedJob, CompareJobsResponse } from '@relora/sdk';
import { jobLabels } from './comparisonTable.js';

/** Jobs that differ only in their seed, and their mean results. */
export interface SeedMean {
  label: string;
  seeds: number[];
  loss: Spread;
  /** Held-out loss minus that of the reference's group, for the same seed: the effect of the seed on both cancels. */
  difference: Spread | null;
  isReference: boolean;
}

export interface Spread {
  mean: number;
  /** Sample standard deviation. */
  deviation: number;
}

/**
 * Means over seeds of a comparison: one for each group of at least two jobs with the same settings that were evaluated after the same
 * number of tokens. Empty if no settings have several seeds.
 */
export function seedMeans(comparison: CompareJobsResponse): SeedMean[] {
  const labels = jobLabels(comparison.jobs);
  const groups = [...groupsBySettings(comparison).values()].filter((members) => members.length > 1);
  const ofReference = groups.find((members) => members.some(({ job }) => job.name === comparison.reference));
  return groups.map((members) => {
    const differences = ofReference === undefined ? [] : pairedDifferences(members, ofReference);
    return {
      label: commonLabel(members.map(({ index }) => labels[index]!)),
      seeds: members.map(({ job }) => job.seed),
      loss: spreadOf(members.map(({ loss }) => loss)),
      difference: differences.length > 1 && members !== ofReference ? spreadOf(differences) : null,
      isReference: members === ofReference,
    };
  });
}

interface Member {
  job: ComparedJob;
  index: number;
  loss: number;
}

/** Jobs grouped by all settings that differ except the seed, and by the tokens before their last evaluation. */
function groupsBySettings({ jobs, differences }: CompareJobsResponse): Map<string, Member[]> {
  const deciding = differences.filter(({ field }) => field !== 'seed');
  const groups = new Map<string, Member[]>();
  for (const [index, job] of jobs.entries()) {
    const { evaluationLoss: loss, evaluationTokenCount, evaluationStep } = job;
    if (loss === undefined) continue;
    const key = JSON.stringify([
      evaluationStep,
      evaluationTokenCount,
      ...deciding.map(({ values }) => values[index]),
    ]);
    const members = groups.get(key) ?? [];
    groups.set(key, members);
    members.push({ job, index, loss });
  }
  return groups;
}

function pairedDifferences(members: readonly Member[], reference: readonly Member[]): number[] {
  return members.flatMap(({ job, loss }) => {
    const other = reference.find(
      (one) =>
        one.job.seed === job.seed &&
        one.job.trainedTokens === job.trainedTokens &&
        one.job.evaluationTokenCount === job.evaluationTokenCount,
    );
    return other === undefined ? [] : [loss - other.loss];
  });
}

/** The common beginning of a group's titles: "relora" for "relora, seed 1" and "relora, seed 2"; if there is none, all titles. */
function commonLabel(labels: readonly string[]): string {
  const [first, ...others] = labels as [string, ...string[]];
  let length = first.length;
  while (!others.every((other) => other.startsWith(first.slice(0, length)))) length--;
  const common = first.slice(0, length).replace(/[\s,]*(seed)?[\s,]*$/, '');
  return common === '' ? labels.join(' + ') : common;
}

function spreadOf(values: readonly number[]): Spread {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, deviation: Math.sqrt(squares / (values.length - 1)) };
}
