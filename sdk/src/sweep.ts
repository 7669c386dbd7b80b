import { randomUUID } from 'node:crypto';
import { requestIdOf, specOfKind, withStepCounts } from './comparison.js';
import type { CallOptions } from './callOptions.js';
import type { JobSpec, ReloraClient } from './client.js';
import { JobKind, JobState, Metric, type Job } from './contract.js';
import { JobFailedError, ReloraError } from './errors.js';

/** Learning rates to try: a list, or a number of rates with equal ratios between two limits. */
export type RateGrid = { rates: readonly number[] } | { from: number; to: number; count: number };

export type SweepOptions = RateGrid &
  CallOptions & {
    /** Jobs get the label `sweep=<id>`; repeating an id finds the jobs of the first call. Default: a new id. */
    id?: string;
    /** Kinds to try every rate with; default: that of the specification. */
    kinds?: readonly JobKind[];
    /** Ranks to try every rate with; default: that of the specification. FULL_RANK has none. */
    ranks?: readonly number[];
    /**
     * Scales, alpha / rank, to try every rate with; default: that of the specification. They change the adapters relative to embedding,
     * norms and head, which the learning rate changes together. FULL_RANK has none.
     */
    scales?: readonly number[];
    /** Further labels of the jobs. */
    labels?: Record<string, string>;
    /** Called when a job was created or found, and when it ended. */
    onRun?: (run: SweepRun) => void;
  };

/** One tried rate. */
export interface SweepRun {
  kind: JobKind;
  /** 0 for FULL_RANK. */
  rank: number;
  /** alpha / rank; null for FULL_RANK, and if no scales were requested. */
  scale: number | null;
  learningRate: number;
  job: Job;
  /** Last loss on the held-out part; null if there is none. */
  evaluationLoss: number | null;
  /** `diverged`: losses were not finite, or the held-out loss ended above its first value. Never the best. */
  outcome: 'waiting' | 'succeeded' | 'diverged' | 'failed' | 'cancelled';
}

/** All rates of one kind, rank and scale. */
export interface SweepVariant {
  kind: JobKind;
  rank: number;
  scale: number | null;
  /** Ordered by rate. */
  runs: SweepRun[];
  /** The run with the lowest held-out loss; null if no run has one. */
  best: SweepRun | null;
  /** The best rate is the lowest or highest that was tried: there may be a better one beyond it. */
  isBestAtEdge: boolean;
}

export interface Sweep {
  id: string;
  variants: SweepVariant[];
}

/** The calls that a sweep makes. */
type SweepClient = Pick<
  ReloraClient,
  'createJob' | 'estimateJob' | 'validateJob' | 'waitForJob' | 'getJob' | 'getMetricHistory'
>;

/** Most jobs of a sweep: a larger grid is a mistake. */
export const sweepJobsMax = 256;

/** Trains a specification with every requested rate, kind, rank and scale, and finds the best rate for each combination of the others. */
export async function sweepLearningRate(
  client: SweepClient,
  spec: JobSpec,
  options: SweepOptions,
): Promise<Sweep> {
  const rates = ratesOf(options);
  const { id = randomUUID().slice(0, 8), signal, onRun = () => {} } = options;
  const variants = await variantsOf(client, spec, options);
  if (rates.length * variants.length > sweepJobsMax) {
    const found = `${rates.length} rates × ${variants.length} kinds, ranks and scales`;
    throw invalid(`A sweep has at most ${sweepJobsMax} jobs, and ${found} are more`);
  }
  const planned = variants.flatMap(({ spec, ...variant }) =>
    rates.map((learningRate) => {
      const { kind, rank, scale } = variant;
      const scaled = scale === null ? '' : ` scale ${scale}`;
      const key = `sweep ${id}: ${kind} rank ${rank}${scaled} rate ${learningRate}`;
      return {
        variant: { ...variant, learningRate },
        spec: { ...spec, learningRate: { ...spec.learningRate, peak: learningRate } },
        create: {
          displayName: `Sweep ${id}: rate ${learningRate}`.slice(0, 63),
          labels: { ...options.labels, sweep: id },
          requestId: requestIdOf(key),
          signal,
        },
      };
    }),
  );
  // What the server refuses is found before the first job is queued.
  for (const { spec, create } of planned) await client.validateJob(spec, create);
  // Created one after the other, so that they run in this order, and a full queue refuses the last ones.
  const runs: SweepRun[] = [];
  for (const { variant, spec, create } of planned) {
    const job = await client.createJob(spec, create);
    runs.push({ ...variant, job, evaluationLoss: null, outcome: 'waiting' });
    onRun(runs.at(-1)!);
  }
  const ended = await Promise.all(
    runs.map(async (run) => {
      const { name } = run.job;
      await untilEnd(client, name, signal);
      const job = await client.getJob(name, { signal });
      const after = { ...run, job, ...judge(job, await heldOutLosses(client, name, signal)) };
      onRun(after);
      return after;
    }),
  );
  return {
    id,
    variants: variants.map(({ spec: _, ...variant }) =>
      bestOf(
        variant,
        ended.filter(
          ({ kind, rank, scale }) =>
            kind === variant.kind && rank === variant.rank && scale === variant.scale,
        ),
      ),
    ),
  };
}

/** The rates of a grid, lowest first. */
export function ratesOf(grid: RateGrid): number[] {
  if ('rates' in grid) {
    const rates = [...new Set(grid.rates)].sort((a, b) => a - b);
    if (rates.length === 0 || !rates.every((rate) => rate > 0))
      throw invalid(`Rates should be numbers above 0, not ${JSON.stringify(grid.rates)}`);
    return rates;
  }
  const { from, to, count } = grid;
  if (!(from > 0 && to > from && Number.isInteger(count) && count >= 2))
    throw invalid(
      `A grid goes from a rate above 0 to a higher one in 2 or more, not ${JSON.stringify(grid)}`,
    );
  // Rounded, so that rates can be read and typed again.
  const rates = Array.from({ length: count }, (_, index) =>
    Number((from * (to / from) ** (index / (count - 1))).toPrecision(3)),
  );
  return [...new Set(rates)];
}

/** Finds the best rate of one kind, rank and scale. */
export function bestOf(
  variant: Pick<SweepVariant, 'kind' | 'rank' | 'scale'>,
  runs: readonly SweepRun[],
): SweepVariant {
  const sorted = [...runs].sort((a, b) => a.learningRate - b.learningRate);
  let best: SweepRun | null = null;
  for (const run of sorted) {
    if (run.outcome !== 'succeeded' || run.evaluationLoss === null) continue;
    if (best === null || run.evaluationLoss < best.evaluationLoss!) best = run;
  }
  const isBestAtEdge = best !== null && (best === sorted[0] || best === sorted.at(-1));
  return { ...variant, runs: sorted, best, isBestAtEdge };
}

function judge(job: Job, evaluations: readonly number[]): Pick<SweepRun, 'evaluationLoss' | 'outcome'> {
  const [first, last] = [evaluations[0], evaluations.at(-1)];
  const evaluationLoss = last ?? null;
  if (job.failure?.reason === 'TRAINING_DIVERGED') return { evaluationLoss, outcome: 'diverged' };
  if (job.state === JobState.FAILED) return { evaluationLoss, outcome: 'failed' };
  if (job.state === JobState.CANCELLED) return { evaluationLoss, outcome: 'cancelled' };
  // Only finite losses are reported; without a held-out part, not even the first.
  const isWorse = first !== undefined && (evaluations.length === 1 || last! >= first);
  return { evaluationLoss, outcome: isWorse ? 'diverged' : 'succeeded' };
}

type Variant = Pick<SweepVariant, 'kind' | 'rank' | 'scale'> & { spec: JobSpec };

async function variantsOf(
  client: SweepClient,
  spec: JobSpec,
  { kinds, ranks, scales, signal }: SweepOptions,
): Promise<Variant[]> {
  const complete = (await client.estimateJob(spec, { signal })).spec;
  const { kind = JobKind.RELORA, adapter } = complete ?? {};
  const whole = withStepCounts(spec, complete);
  return (kinds ?? [kind]).flatMap((each): Variant[] => {
    const base = kind === each ? spec : specOfKind(whole, each);
    if (each === JobKind.FULL_RANK) return [{ kind: each, rank: 0, scale: null, spec: base }];
    return (ranks ?? [adapter?.rank ?? 0]).flatMap((rank) =>
      (scales ?? [null]).map((scale) => {
        const alpha = scale === null ? {} : { alpha: scale * rank };
        return { kind: each, rank, scale, spec: { ...base, adapter: { ...base.adapter, rank, ...alpha } } };
      }),
    );
  });
}

/** Waits until a job has ended, however it ends. */
async function untilEnd(client: SweepClient, name: string, signal?: AbortSignal): Promise<void> {
  try {
    await client.waitForJob(name, { signal });
  } catch (error) {
    if (!(error instanceof JobFailedError)) throw error;
  }
}

/** Oldest first. */
async function heldOutLosses(client: SweepClient, name: string, signal?: AbortSignal): Promise<number[]> {
  const { series } = await client.getMetricHistory(name, { metrics: [Metric.EVALUATION_LOSS], signal });
  return series[0]?.points.map(({ last }) => last) ?? [];
}

function invalid(message: string): ReloraError {
  return new ReloraError(message, { code: 'INVALID_ARGUMENT' });
}
