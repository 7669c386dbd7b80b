import { isDeepStrictEqual } from 'node:util';
import {
  adapterSettings,
  batchSettings,
  keptValues,
  modelSettings,
  optimizerSettings,
  runSettings,
  streamSettings,
  warmStartSettings,
  type RunSpec,
} from '@relora/engine/plan';
import type { JobSpec } from '@relora/sdk/contract';
import { quote, type FieldProblem } from '../errors.js';
import { fieldName } from './settings.js';

/**
 * The settings that determine the content of a checkpoint: weights, adapters, moments and the place in the data. A run that begins at it
 * must have the same ones; everything else may change. The tables of settings mark them.
 */
function keptOf(spec: RunSpec): Record<string, unknown> {
  const { adapter } = spec;
  const run = keptValues(runSettings, { kind: spec.kind, seed: spec.seed });
  return {
    ...run,
    model: keptValues(modelSettings, spec.model),
    'model.baseWeights': spec.baseWeightsFolder,
    dataset: spec.dataset,
    mixture: spec.mixture,
    warmStart: keptValues(warmStartSettings, spec.warmStart),
    streams: keptValues(streamSettings, spec.streams),
    adapter: adapter && {
      ...keptValues(adapterSettings, adapter),
      // The single cycle of LORA is as long as the run.
      ...(spec.kind === 'lora' && { cycleStepCount: null, restartWarmupStepCount: null }),
    },
    optimizer: keptValues(optimizerSettings, spec.optimizer),
    batch: keptValues(batchSettings, spec.batch),
  };
}

/** Changes that a run must not make if it begins at the checkpoint of another. */
export function problemsOfFork(before: RunSpec, after: RunSpec, checkpointStep: number): FieldProblem[] {
  const asked = keptOf(after);
  const problems = Object.entries(keptOf(before)).flatMap(([name, kept]) =>
    differences(`spec.${fieldName(name)}`, kept, asked[name]),
  );
  const stepCountMin = checkpointStep - after.warmStart.stepCount + 1;
  if (after.stepCount < stepCountMin) {
    problems.push({
      field: 'spec.step_count',
      expected: `at least ${stepCountMin}, one more than the checkpoint has behind it`,
      got: String(after.stepCount),
    });
  }
  return problems;
}

function differences(field: string, kept: unknown, asked: unknown): FieldProblem[] {
  if (isDeepStrictEqual(kept, asked)) return [];
  if (isMessage(kept) && isMessage(asked)) {
    return Object.keys(kept).flatMap((key) =>
      differences(`${field}.${fieldName(key)}`, kept[key], asked[key]),
    );
  }
  const show = (value: unknown): string => quote(JSON.stringify(value)).slice(1, -1);
  return [{ field, expected: `what the checkpoint was trained with, ${show(kept)}`, got: show(asked) }];
}

/** The first step that changes omit and the job did not; undefined if there is none. */
export function firstOmittedAnew(
  { omittedSteps: before }: Pick<RunSpec, 'omittedSteps'>,
  changes: Pick<JobSpec, 'omittedSteps' | 'skippedSteps'> | undefined,
): number | undefined {
  const ranges = [...(changes?.omittedSteps ?? []), ...(changes?.skippedSteps ?? [])];
  for (const { first, last } of ranges.sort((one, other) => one.first - other.first)) {
    let step = first;
    for (const range of before) if (range.first <= step && step <= range.last) step = range.last + 1;
    if (step <= last) return step;
  }
  return undefined;
}

/** The specification of a job with changes applied; unset fields of the changes leave it as it is. */
export function changedSpec(spec: JobSpec, changes: JobSpec | undefined): JobSpec {
  const base = structuredClone(spec);
  // Recomputed from step_count.
  if (base.kind === 'JOB_KIND_LORA') delete base.adapter?.cycleStepCount;
  if (changes?.tokenCount !== undefined) delete base.stepCount; // the two exclude each other
  // Two names of one setting.
  if (changes !== undefined && changes.omittedSteps.length + changes.skippedSteps.length > 0)
    Object.assign(base, { omittedSteps: [], skippedSteps: [] });
  return changes === undefined ? base : (putOver(base, changes) as JobSpec);
}

/** A message with another applied to it; unset fields of the other leave it as it is. */
export function putOver(base: unknown, changes: object): object {
  const result: Record<string, unknown> = { ...(base as object | undefined) };
  for (const [key, value] of Object.entries(changes) as [string, unknown][]) {
    if (!isUnset(value)) result[key] = isMessage(value) ? putOver(result[key], value) : value;
  }
  return result;
}

/** Unset as in proto3 for fields without presence: names, enums and lists. */
function isUnset(value: unknown): boolean {
  if (typeof value === 'string') return value === '' || value.endsWith('_UNSPECIFIED');
  return value === undefined || (Array.isArray(value) && value.length === 0);
}

function isMessage(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
