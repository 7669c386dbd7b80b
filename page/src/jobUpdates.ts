import type { Job, JobPlan, JobSpec } from '@relora/sdk/contract';
import { call, type Json } from './api.js';

type Updated = Pick<Json<Job>, 'spec' | 'updates' | 'progress'>;

/** The specification of a job with its updates. */
export function updatedSpec({ spec, updates }: Updated): Json<JobSpec> | undefined {
  return spec && updates.reduce(withUpdate, spec);
}

/** The plan of a job: until an update, it is that of the settings before. Undefined if a job has none, because its data is gone. */
export async function planOf(
  { spec, updates, progress }: Updated,
  signal: AbortSignal,
): Promise<Json<JobPlan> | undefined> {
  const estimated = async (of: Json<JobSpec>): Promise<Json<JobPlan> | undefined> =>
    (await call('TrainingService', 'estimateJob', { spec: of as never }, signal).catch(() => undefined))
      ?.plan;
  if (spec === undefined) return undefined;
  let present = spec;
  let plan = await estimated(present);
  for (const update of updates) {
    present = withUpdate(present, update);
    if (update.stepCount === undefined || plan === undefined) continue;
    const from = firstStepOf(update, progress);
    const before = plan.learningRates.filter(({ step }) => Number(step) < from);
    plan = await estimated(present);
    if (plan === undefined) break;
    const after = plan.learningRates.filter(({ step }) => Number(step) >= from);
    plan = { ...plan, learningRates: [...before, ...after] };
  }
  const factorAt = (step: number): number =>
    Number(
      updates.findLast(
        (update) => update.learningRateFactor !== undefined && firstStepOf(update, progress) <= step,
      )?.learningRateFactor ?? 1,
    );
  return (
    plan && {
      ...plan,
      learningRates: plan.learningRates.map(({ step, learningRate }) => ({
        step,
        learningRate: Number(learningRate) * factorAt(Number(step)),
      })),
    }
  );
}

/** An update that the run has not reached applies to its next step. */
function firstStepOf({ step }: Json<Job>['updates'][number], progress: Updated['progress']): number {
  return Number(step ?? progress?.step ?? 0);
}

function withUpdate(spec: Json<JobSpec>, update: Json<Job>['updates'][number]): Json<JobSpec> {
  const { stepCount, evaluation, checkpoint, sample } = update;
  return {
    ...spec,
    ...(stepCount === undefined ? {} : { stepCount }),
    ...(evaluation === undefined ? {} : { evaluation: { ...spec.evaluation!, ...evaluation } }),
    ...(checkpoint === undefined ? {} : { checkpoint: { ...spec.checkpoint!, ...checkpoint } }),
    ...(sample === undefined ? {} : { sample: { ...spec.sample!, ...sample } }),
  };
}
