import { createHash, randomUUID } from 'node:crypto';
import type { CallOptions } from './callOptions.js';
import type { JobSpec, ReloraClient } from './client.js';
import { JobKind, type Job } from './contract.js';

export interface ComparisonOptions extends CallOptions {
  /** Jobs get the label `comparison=<id>`; repeating an id finds the jobs of the first call. Default: a new id. */
  id?: string;
  /** Default: full-rank, ReLoRA and LoRA. */
  kinds?: readonly JobKind[];
  /** Default: that of the specification. */
  seeds?: readonly number[];
  /** Further labels of the jobs. */
  labels?: Record<string, string>;
}

/** Queues the same training with several kinds and seeds. */
export async function createComparison(
  client: Pick<ReloraClient, 'createJob' | 'estimateJob' | 'validateJob'>,
  spec: JobSpec,
  { signal, labels, ...options }: ComparisonOptions,
): Promise<{ id: string; jobs: Job[] }> {
  const { FULL_RANK, RELORA, LORA } = JobKind;
  const { id = randomUUID().slice(0, 8), kinds = [FULL_RANK, RELORA, LORA] } = options;
  const relora: JobSpec = { ...spec, kind: RELORA };
  // Of the specified kind alone, nothing has to be derived.
  const isDerived = kinds.some((kind) => kind !== (spec.kind ?? RELORA));
  const whole = isDerived
    ? withStepCounts(relora, (await client.estimateJob(relora, { signal })).spec)
    : undefined;
  const runs = (options.seeds ?? [spec.seed]).flatMap((seed) =>
    kinds.map((kind) => {
      const kindName = kind.replace('JOB_KIND_', '').toLowerCase().replace('_', '-');
      const create = {
        displayName: seed === undefined ? kindName : `${kindName}, seed ${seed}`,
        labels: { ...labels, comparison: id },
        requestId: requestIdOf(`comparison ${id}: ${kind} seed ${seed}`),
        signal,
      };
      const ofKind = whole === undefined ? { ...spec, kind } : specOfKind(whole, kind);
      return { spec: { ...ofKind, seed }, create };
    }),
  );
  // What the server refuses is found before the first job is queued.
  for (const { spec, create } of runs) await client.validateJob(spec, create);
  const jobs: Job[] = [];
  for (const { spec, create } of runs) jobs.push(await client.createJob(spec, create));
  return { id, jobs };
}

/**
 * The specification with the steps of both phases as counts, so that a kind without a warm start can take as many in addition.
 * @param resolved the same specification as the server completed it
 */
export function withStepCounts(spec: JobSpec, resolved: JobSpec | undefined): JobSpec {
  const { tokenCount: _, ...rest } = spec;
  const warmStart = { ...spec.warmStart, stepCount: resolved?.warmStart?.stepCount ?? 0 };
  return { ...rest, stepCount: resolved?.stepCount, warmStart };
}

/**
 * The same training with another kind: model, data, seed, batch and number of tokens stay the same, so that the losses can be compared. The
 * steps of the warm start are ordinary steps for FULL_RANK, and have its optimizer; LORA has no restarts.
 * @param spec of kind RELORA, with step counts
 */
export function specOfKind(spec: JobSpec, kind: JobKind): JobSpec {
  switch (kind) {
    case JobKind.FULL_RANK: {
      const { adapter, warmStart, stepCount = 0, ...rest } = spec;
      const fullRankOptimizer = warmStart?.optimizer ?? adapter?.fullRankOptimizer;
      return {
        ...rest,
        kind,
        stepCount: stepCount + (warmStart?.stepCount ?? 0),
        ...(fullRankOptimizer && { optimizer: { ...spec.optimizer, fullRankOptimizer } }),
      };
    }
    case JobKind.LORA: {
      const {
        cycleStepCount: _1,
        restartWarmupStepCount: _2,
        allowShortLastCycle: _3,
        cycleGrowth: _4,
        fullRankStepCount: _5,
        fullRankOptimizer: _6,
        ...adapter
      } = spec.adapter ?? {};
      return { ...spec, kind, adapter };
    }
    default:
      return { ...spec, kind };
  }
}

/** A UUID derived from a text: repeating a call for the same purpose is the same call. */
export function requestIdOf(text: string): string {
  const hex = createHash('sha256').update(text).digest('hex');
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`, // version 8: made by a rule of our own
    `8${hex.slice(17, 20)}`,
    hex.slice(20, 32),
  ].join('-');
}
