import { passesOf, type MixturePart } from '@relora/engine/plan';
import type { JobSpec } from '@relora/sdk/contract';
import type { DatasetHead, PreparedDataset } from '../datasets/dataset.js';
import { quote } from '../errors.js';
import type { FieldChecks } from './fieldChecks.js';
import { datasetIdOf } from './resourceNames.js';
import { defaultTenant } from '../store/tenantIds.js';
import type { ModelessRun } from './specChecks.js';

/** A data set that a specification names. */
export interface NamedDataset extends MixturePart {
  /** Undefined where there is none. */
  head: DatasetHead | undefined;
}

const weightMax = 1e9;

/** The data sets of a specification with their weights, which sum to more than nothing. */
export function parseDatasets(
  checks: FieldChecks,
  asked: Pick<JobSpec, 'dataset' | 'mixture'>,
  find: (name: string) => DatasetHead | undefined,
  datasetsMax: number,
): NamedDataset[] {
  const { dataset, mixture } = asked;
  checks.count('spec.mixture', mixture, datasetsMax);
  if (mixture.length === 0) {
    checkDataset(checks, 'spec.dataset', dataset, find(dataset));
    return [{ dataset, weight: 1, head: find(dataset) }];
  }
  const first = mixture[0]!.dataset;
  if (dataset !== '' && dataset !== first)
    checks.add(
      'spec.dataset',
      `nothing beside a mixture, or its first data set, ${quote(first)}`,
      quote(dataset),
    );
  const parts = mixture.slice(0, datasetsMax).map((part, index): NamedDataset => {
    const field = `spec.mixture[${index}]`;
    const head = find(part.dataset);
    checkDataset(checks, `${field}.dataset`, part.dataset, head);
    if (mixture.findIndex((other) => other.dataset === part.dataset) < index)
      checks.add(`${field}.dataset`, 'each data set once', quote(part.dataset));
    const weight = checks.number(`${field}.weight`, part.weight, 1, { min: 0, max: weightMax });
    return { dataset: part.dataset, weight, head };
  });
  if (!checks.isWrong('spec.mixture') && parts.every(({ weight }) => weight === 0))
    checks.add('spec.mixture', 'a weight above 0 in one of its data sets at least', 'weights that sum to 0');
  checkTokenizers(checks, parts);
  return parts;
}

function checkDataset(checks: FieldChecks, field: string, name: string, head: DatasetHead | undefined): void {
  if (datasetIdOf(defaultTenant, name) === undefined) checks.add(field, 'datasets/{dataset}', quote(name));
  else if (head === undefined) checks.add(field, 'a data set that exists', quote(name));
}

function checkTokenizers(checks: FieldChecks, parts: readonly NamedDataset[]): void {
  const first = parts[0]?.head?.prepared?.tokenizer;
  for (const [index, { head }] of parts.entries()) {
    const own = head?.prepared?.tokenizer;
    if (first === undefined || own === undefined) continue;
    if (own.sha256 === first.sha256 && own.endOfTextId === first.endOfTextId) continue;
    checks.add(
      `spec.mixture[${index}].dataset`,
      `one with the tokenizer of ${parts[0]!.dataset}, ${describe(first)}`,
      describe(own),
    );
  }
}

function describe({ kind, vocabularySize, sha256, endOfTextId }: PreparedDataset['tokenizer']): string {
  return `${kind} of ${vocabularySize} tokens, end of text ${endOfTextId} (${sha256.slice(0, 12)})`;
}

/** Data sets that are trained on and prepared. */
export function trainedParts(parts: readonly NamedDataset[]) {
  return parts.flatMap(({ dataset, weight, head }) =>
    weight > 0 && head?.prepared ? [{ dataset, weight, tokenCount: head.prepared.train.tokenCount }] : [],
  );
}

/** Most steps in which no training part is read twice. */
export function stepsInOnePass(
  parts: readonly NamedDataset[],
  { batch, seed }: Pick<ModelessRun, 'batch' | 'seed'>,
): number {
  const trained = trainedParts(parts);
  const isWithin = (steps: number): boolean =>
    passesOf(trained, seed, steps * batch.sequenceCount, batch.sequenceLength).every((passes) => passes <= 1);
  let [low, high] = [0, 1];
  while (isWithin(high)) [low, high] = [high, 2 * high];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (isWithin(middle)) low = middle;
    else high = middle;
  }
  return low;
}
