import type { RunSpec } from '@relora/engine/plan';
import { JobSpec, type SettingDifference } from '@relora/sdk/contract';
import { fieldName } from './settings.js';
import { toSpec } from './toProto.js';

/** Settings that are not the same in all specifications, with the names and values of the contract. */
export function settingDifferences(specs: readonly RunSpec[]): SettingDifference[] {
  // Without the old name of omitted_steps, which has the same value.
  const settings = specs.map(
    (spec) => new Map(leavesOf(JobSpec.toJSON({ ...toSpec(spec), skippedSteps: [] }), '')),
  );
  const fields = new Set(settings.flatMap((each) => [...each.keys()]));
  return [...fields]
    .map((field) => ({ field, values: settings.map((each) => each.get(field) ?? '') }))
    .filter(({ values }) => new Set(values).size > 1);
}

/** Path and JSON of every value in a message that is not a message itself. */
function leavesOf(value: unknown, path: string): [path: string, json: string][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return [[path, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([key, each]) => {
    const name = fieldName(key);
    return leavesOf(each, path === '' ? name : `${path}.${name}`);
  });
}
