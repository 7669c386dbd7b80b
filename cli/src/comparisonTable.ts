import type { ComparedJob, CompareJobsResponse } from '@relora/sdk';
import type { SeedMean, Spread } from './seedMeans.js';
import { bytes, figure, quantity, timeTaken, word } from './format.js';

/** A column of the table of a comparison. */
export interface Column {
  title: string;
  /** What the number means, for people who see it for the first time. */
  meaning: string;
  cell(job: ComparedJob, comparison: CompareJobsResponse): string;
}

const none = '–';

/** The requested settings. */
export const settingColumns: readonly Column[] = [
  { title: 'kind', meaning: 'kind of training', cell: ({ kind }) => word(kind, 'JOB_KIND_') },
  { title: 'rank', meaning: 'rank of the adapters', cell: ({ rank }) => count(rank) },
  { title: 'cycle', meaning: 'steps between restarts', cell: ({ cycleStepCount }) => count(cycleStepCount) },
  {
    title: 'rate',
    meaning: 'highest learning rate of the main phase',
    cell: ({ peakLearningRate }) => String(Number(peakLearningRate.toPrecision(4))),
  },
  { title: 'seed', meaning: 'seed', cell: ({ seed }) => String(seed) },
  {
    title: 'trained',
    meaning: 'weights that the main phase trains',
    cell: ({ trainableParameterCount }) => quantity(trainableParameterCount),
  },
];

/** How good the model is. */
export const qualityColumns: readonly Column[] = [
  {
    title: 'held-out',
    meaning: 'last loss on the held-out part, nats per token',
    cell: (job) => loss(job.evaluationLoss),
  },
  { title: 'best', meaning: 'lowest loss on the held-out part', cell: (job) => loss(job.bestEvaluationLoss) },
  {
    title: 'perplexity',
    meaning: 'exp of the held-out loss',
    cell: ({ perplexity }) => optional(perplexity, figure),
  },
  {
    title: 'bits/byte',
    meaning: 'held-out loss as bits per byte of text, comparable between tokenizers',
    cell: ({ bitsPerByte }) => optional(bitsPerByte, (value) => value.toFixed(4)),
  },
  {
    title: 'difference',
    meaning: 'held-out loss minus that of the reference, at equal tokens',
    cell: ({ name, evaluationLossDifference }, { reference }) =>
      name === reference ? 'reference' : optional(evaluationLossDifference, signed),
  },
];

/** What the training cost. */
export const costColumns: readonly Column[] = [
  { title: 'state', meaning: 'state of the job', cell: ({ state }) => word(state, 'JOB_STATE_') },
  {
    title: 'step',
    meaning: 'steps taken, of all steps',
    cell: ({ step, stepCount }) => `${step}/${stepCount}`,
  },
  { title: 'tokens', meaning: 'tokens trained on', cell: ({ trainedTokens }) => quantity(trainedTokens) },
  {
    title: 'time',
    meaning: 'time in steps and restarts, without evaluations, checkpoints and pauses',
    cell: ({ trainingSeconds }) => timeTaken(trainingSeconds),
  },
  {
    title: 'tokens/s',
    meaning: 'tokens per second of that time',
    cell: ({ tokensPerSecond }) => optional(tokensPerSecond, quantity),
  },
  {
    title: 'memory',
    meaning: 'peak memory of the trainer process',
    cell: ({ peakResidentBytes }) => optional(peakResidentBytes, bytes),
  },
  {
    title: 'restarts',
    meaning: 'number of restarts: adapters merged and replaced by new ones',
    cell: ({ restartCount }) => String(restartCount),
  },
  {
    title: 'eff. rank',
    meaning: 'effective rank of the whole change at the last restart',
    cell: ({ effectiveRank }) => optional(effectiveRank, (value) => value.toFixed(1)),
  },
  {
    title: 'to ref. loss',
    meaning: 'tokens and time until the held-out loss reached the last one of the reference',
    cell: ({ tokensToReferenceLoss: tokens, secondsToReferenceLoss: seconds = 0 }) =>
      tokens === undefined ? none : `${quantity(tokens)} in ${timeTaken(seconds)}`,
  },
];

/** Columns of the means over seeds. */
export const meanColumns: readonly { title: string; meaning: string; cell(mean: SeedMean): string }[] = [
  { title: 'seeds', meaning: 'seeds that the mean is over', cell: ({ seeds }) => seeds.join(', ') },
  {
    title: 'held-out',
    meaning: 'last loss on the held-out part, nats per token: mean ± standard deviation',
    cell: (mean) => spread(mean.loss, (value) => value.toFixed(4)),
  },
  {
    title: 'difference',
    meaning: 'held-out loss minus that of the reference with the same seed: mean ± standard deviation',
    cell: ({ difference, isReference }) =>
      isReference ? 'reference' : optional(difference ?? undefined, (known) => spread(known, signed)),
  },
];

/** Title of each job, or id if it has none; both if titles are not unique. */
export function jobLabels(jobs: readonly Pick<ComparedJob, 'name' | 'displayName'>[]): string[] {
  return jobs.map(({ name, displayName }) => {
    const id = name.replace('jobs/', '');
    const isAlone = jobs.filter((job) => job.displayName === displayName).length === 1;
    return displayName === '' ? id : isAlone ? displayName : `${displayName} (${id})`;
  });
}

function count(value: number): string {
  return value === 0 ? none : String(value);
}

function loss(value: number | undefined): string {
  return optional(value, (known) => known.toFixed(4));
}

function signed(value: number): string {
  return `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(4)}`;
}

function spread({ mean, deviation }: Spread, show: (value: number) => string): string {
  return `${show(mean)} ± ${deviation.toFixed(4)}`;
}

function optional<T>(value: T | undefined, show: (value: T) => string): string {
  return value === undefined ? none : show(value);
}
