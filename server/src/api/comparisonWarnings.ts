import { defaultPeakRate } from '@relora/engine/plan';
import type { WarningEvent } from '@relora/sdk/contract';
import type { PreparedDataset } from '../datasets/dataset.js';
import type { ComparisonWarning } from '../errors.js';
import type { Job } from '../jobs/job.js';
import type { MetricHistory } from '../jobs/metricHistory.js';
import { nameOf } from '../store/tenantIds.js';

/** A job that takes part in a comparison. */
export interface Contender {
  job: Job;
  history: MetricHistory;
  /** Null if its data set no longer exists. */
  prepared: PreparedDataset | null;
}

interface Check {
  reason: ComparisonWarning;
  what: string;
  /** What should be the same in all jobs; undefined if unknown. */
  valueOf(contender: Contender): string | undefined;
  consequence: string;
}

const checks: readonly Check[] = [
  {
    reason: 'DATA_DIFFER',
    what: 'data',
    valueOf: ({ job, prepared }) => {
      const sha256 = job.execution?.datasetSha256 || prepared?.manifestSha256;
      const { dataset, mixture } = job.spec;
      const names = mixture.map((part) => `${part.weight} of ${part.dataset}`).join(' + ') || dataset;
      return sha256 === undefined ? undefined : `${names} (${sha256.slice(0, 12)})`;
    },
    consequence: 'losses are of different texts',
  },
  {
    reason: 'TOKENIZERS_DIFFER',
    what: 'tokenizer',
    valueOf: ({ prepared }) =>
      prepared === null
        ? undefined
        : `${prepared.tokenizer.kind} of ${prepared.tokenizer.vocabularySize} (${prepared.tokenizer.sha256.slice(0, 12)})`,
    consequence: 'compare bits per byte, not losses per token',
  },
  {
    reason: 'MODELS_DIFFER',
    what: 'model',
    valueOf: ({ job: { spec } }) => {
      const { hiddenSize, intermediateSize, numHiddenLayers, ...others } = spec.model;
      const rest = Object.entries(others).map(([key, value]) => `${key} ${value}`);
      const base = spec.baseWeightsName ?? spec.baseWeightsFolder;
      const start = base === null ? 'new weights' : `weights of ${base}`;
      return `${numHiddenLayers} × ${hiddenSize} × ${intermediateSize}, ${rest.join(', ')}, ${start}`;
    },
    consequence: 'the difference does not come from training only',
  },
  {
    reason: 'SEQUENCES_DIFFER',
    what: 'tokens in a sequence',
    valueOf: ({ job }) => String(job.spec.batch.sequenceLength),
    consequence: 'tokens are predicted from other contexts',
  },
  {
    reason: 'BATCHES_DIFFER',
    what: 'tokens in a step',
    valueOf: ({ job }) => String(tokensInStep(job)),
    consequence: 'compare by tokens, not by steps',
  },
  {
    reason: 'TOKENS_DIFFER',
    what: 'tokens asked for',
    valueOf: ({ job }) => String(job.progress.stepCount * tokensInStep(job)),
    consequence: 'last losses are not of equal training; differences are taken at equal tokens',
  },
  {
    reason: 'HELD_OUT_TOKENS_DIFFER',
    what: 'held-out tokens of the last evaluation',
    valueOf: ({ history }) => history.lastEvaluation?.tokenCount.toString(),
    consequence: 'losses are of different parts of the held-out text',
  },
  {
    reason: 'ARITHMETIC_DIFFERS',
    what: 'ran on',
    valueOf: ({ job: { execution } }) =>
      execution === null
        ? undefined
        : [execution.backend, execution.instructionSet, execution.precision].filter(Boolean).join(' '),
    consequence: 'seconds, and the last digits of losses, differ by that',
  },
];

/** Reasons why the numbers of a comparison cannot be compared as they are. */
export function comparisonWarningsOf(contenders: readonly Contender[]): WarningEvent[] {
  const warnings = checks.flatMap(({ reason, what, valueOf, consequence }) => {
    const groups = groupBy(contenders, valueOf);
    return groups.size < 2 ? [] : [{ reason, message: `${what}: ${listed(groups)}; ${consequence}` }];
  });
  return [...warnings, ...rateWarning(contenders), ...seedWarning(contenders), ...stateWarnings(contenders)];
}

function tokensInStep({ spec }: Job): number {
  return spec.batch.sequenceCount * spec.batch.sequenceLength;
}

/**
 * The best learning rate for ReLoRA is not the best one for full-rank training, and untuned rates often change the loss more than the kind
 * of training does.
 */
function rateWarning(contenders: readonly Contender[]): WarningEvent[] {
  const isDefault = ({ job: { spec } }: Contender) => spec.learningRate.peak === defaultPeakRate(spec.kind);
  const rates = groupBy(contenders, (contender) => {
    const { peak } = contender.job.spec.learningRate;
    return isDefault(contender) ? `${peak}, the default,` : String(peak);
  });
  const kinds = new Set(contenders.map(({ job }) => job.spec.kind));
  const peaks = new Set(contenders.map(({ job }) => job.spec.learningRate.peak));
  if (kinds.size < 2 || peaks.size < 2 || !contenders.some(isDefault)) return [];
  const reason: ComparisonWarning = 'RATES_UNTUNED';
  const fair =
    'a fair comparison gives each kind its own best rate, found by a sweep of each over the same data, and has several seeds';
  return [{ reason, message: `learning rate: ${listed(rates)}; ${fair}` }];
}

/** A comparison should have several seeds, but the same trainings with each. */
function seedWarning(contenders: readonly Contender[]): WarningEvent[] {
  const seeds = groupBy(contenders, ({ job }) => String(job.spec.seed));
  const trainings = [...seeds.values()].map((group) =>
    group
      .map(({ job }) => JSON.stringify({ ...job.spec, seed: 0 }))
      .sort()
      .join(),
  );
  if (new Set(trainings).size < 2) return [];
  const reason: ComparisonWarning = 'SEEDS_DIFFER';
  return [
    { reason, message: `seed: ${listed(seeds)}; initial weights and the order of data differ by chance` },
  ];
}

function stateWarnings(contenders: readonly Contender[]): WarningEvent[] {
  const warnings: { reason: ComparisonWarning; message: string }[] = [];
  const unfinished = groupBy(
    contenders.filter(({ job }) => job.state !== 'succeeded'),
    ({ job }) => job.state.toUpperCase(),
  );
  if (unfinished.size > 0)
    warnings.push({ reason: 'JOBS_UNFINISHED', message: `state: ${listed(unfinished)}` });
  for (const { job } of contenders) {
    if (job.origin === null) continue;
    const { jobId, step } = job.origin;
    warnings.push({
      reason: 'SECONDS_INCOMPLETE',
      message: `jobs/${nameOf(job.id)} begins at step ${step} of jobs/${nameOf(jobId)}: what came before is not in its series and seconds`,
    });
  }
  return warnings;
}

function groupBy(
  contenders: readonly Contender[],
  valueOf: (contender: Contender) => string | undefined,
): Map<string, Contender[]> {
  const groups = new Map<string, Contender[]>();
  for (const contender of contenders) {
    const value = valueOf(contender);
    if (value !== undefined) groups.set(value, [...(groups.get(value) ?? []), contender]);
  }
  return groups;
}

function listed(groups: ReadonlyMap<string, readonly Contender[]>): string {
  return [...groups]
    .map(([value, group]) => `${value} in ${group.map(({ job }) => `jobs/${nameOf(job.id)}`).join(', ')}`)
    .join('; ');
}
