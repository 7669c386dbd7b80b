import type { RunChange, RunSpec, RunUpdate } from '@relora/engine/plan';
import type * as contract from '@relora/sdk/contract';
import type { FieldChecks } from './fieldChecks.js';

/** Limit of the factor on the scheduled learning rate. */
const factorMax = 100;
const everySecondsMax = 2_592_000;
const duties = ['evaluation', 'checkpoint', 'sample'] as const;

type GivenChange = Pick<
  Partial<contract.JobUpdate>,
  'learningRateFactor' | 'stepCount' | 'evaluation' | 'checkpoint' | 'sample' | 'stop'
>;

/** The changes to a run that a client asks for, checked; null for none. */
export function parseChange(
  checks: FieldChecks,
  prefix: { spec: string; factor: string },
  given: GivenChange,
  stepCounts: { min: number; max: number },
): RunChange | null {
  const change: RunChange = {};
  const { learningRateFactor, stepCount } = given;
  if (learningRateFactor !== undefined)
    change.learningRateFactor = checks.number(prefix.factor, learningRateFactor, 1, {
      min: 0,
      max: factorMax,
      above: true,
    });
  if (stepCount !== undefined)
    change.stepCount = checks.integer(
      `${prefix.spec}step_count`,
      stepCount,
      stepCounts.min,
      stepCounts.min,
      stepCounts.max,
    );
  for (const duty of duties) {
    const { everyStepCount, everySeconds } = given[duty] ?? {};
    const field = `${prefix.spec}${duty}`;
    const stepsMin = duty === 'checkpoint' ? 1 : 0;
    if (everyStepCount !== undefined)
      (change[duty] ??= {}).everyStepCount = checks.integer(
        `${field}.every_step_count`,
        everyStepCount,
        stepsMin,
        stepsMin,
        stepCounts.max,
      );
    if (everySeconds !== undefined)
      (change[duty] ??= {}).everySeconds = checks.integer(
        `${field}.every_seconds`,
        everySeconds,
        0,
        0,
        everySecondsMax,
      );
  }
  const { keepCount } = given.checkpoint ?? {};
  if (keepCount !== undefined)
    (change.checkpoint ??= {}).keepCount = checks.integer(
      `${prefix.spec}checkpoint.keep_count`,
      keepCount,
      2,
      2,
      1000,
    );
  for (const duty of ['evaluation', 'sample'] as const) {
    const { keepCount: other } = (given[duty] ?? {}) as contract.UpdatedCadence;
    if (other !== undefined)
      checks.add(`${prefix.spec}${duty}.keep_count`, 'unset, since only checkpoints are kept', other);
  }
  if (given.stop) change.stop = true;
  return Object.keys(change).length === 0 ? null : change;
}

/**
 * What step_count may become after some updates: a run cannot end before its present step or within its warm-up, and a single pass over
 * the data must stay one.
 */
export function stepCountsOf(
  spec: RunSpec,
  earlier: readonly RunUpdate[],
  { step, stepsMax }: { step: number; stepsMax: number },
): { min: number; max: number } {
  const warmStart = spec.kind === 'fullRank' ? 0 : spec.warmStart.stepCount;
  const min = Math.max(1, step - warmStart + 1, spec.learningRate.warmupStepCount + 1);
  const present = earlier.reduce((count, { change }) => change.stepCount ?? count, spec.stepCount);
  return { min, max: Math.max(min, spec.endOfData === 'stop' ? present : stepsMax - warmStart) };
}

/**
 * Changes that a job is created with, each at its step, numbered in their order.
 * @param spec null if it is wrong itself: what depends on it is then not checked
 */
export function parseUpdates(
  checks: FieldChecks,
  given: readonly contract.JobUpdate[],
  spec: RunSpec | null,
  stepsMax: number,
): RunUpdate[] {
  if (given.length > updatesMax) {
    checks.add('updates', `at most ${updatesMax} updates`, given.length);
    return [];
  }
  const updates: RunUpdate[] = [];
  // The present step is not known: when a run is repeated, an update may apply after the last step that it leaves, as it did in the first.
  const present = { step: 0, stepsMax };
  for (const [index, update] of given.entries()) {
    const field = `updates[${index}]`;
    // A later update may be due at an earlier step: it came while this one still waited.
    const step = checks.integer(`${field}.step`, update.step ?? -1, 0, 0, stepsMax);
    const prefix = { spec: `${field}.`, factor: `${field}.learning_rate_factor` };
    const stepCounts = spec === null ? { min: 1, max: stepsMax } : stepCountsOf(spec, updates, present);
    const change = parseChange(checks, prefix, update, stepCounts);
    if (change === null) checks.add(field, 'something that changes', 'nothing');
    else updates.push({ number: index + 1, step, change });
  }
  return updates;
}

/** The most updates that a run may get. */
export const updatesMax = 10_000;

export function toUpdate({ number, step, change }: RunUpdate): contract.JobUpdate {
  const cadence = (duty: (typeof duties)[number]): contract.UpdatedCadence | undefined =>
    change[duty] && {
      everyStepCount: undefined,
      everySeconds: undefined,
      keepCount: undefined,
      ...change[duty],
    };
  return {
    number,
    step: step ?? undefined,
    learningRateFactor: change.learningRateFactor,
    stepCount: change.stepCount,
    evaluation: cadence('evaluation'),
    checkpoint: cadence('checkpoint'),
    sample: cadence('sample'),
    stop: change.stop ?? false,
  };
}
