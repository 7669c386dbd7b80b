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
  /** Undefined if it does not exist. */
  head: DatasetHead | undefined;
}

const weightMax = 1e9;

/** The data sets of a specification with their weights, whose sum must be positive. */
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
      `unset if mixture is set, or its first data set, ${quote(first)}`,
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
  for (const [index, { head }] of parts.entries())
    checkTokenizer(checks, `spec.mixture[${index}].dataset`, parts[0]!, head);
  return parts;
}

export function checkDataset(
  checks: FieldChecks,
  field: string,
  name: string,
  head: DatasetHead | undefined,
): void {
  if (datasetIdOf(defaultTenant, name) === undefined) checks.add(field, 'datasets/{dataset}', quote(name));
  else if (head === undefined) checks.add(field, 'a data set that exists', quote(name));
}

/** The tokens of a data set must be those of the one that is trained on. */
export function checkTokenizer(
  checks: FieldChecks,
  field: string,
  trained: NamedDataset,
  head: DatasetHead | undefined,
): void {
  const [wanted, own] = [trained.head?.prepared?.tokenizer, head?.prepared?.tokenizer];
  if (wanted === undefined || own === undefined) return;
  if (own.sha256 === wanted.sha256 && own.endOfTextId === wanted.endOfTextId) return;
  checks.add(field, `one with the tokenizer of ${trained.dataset}, ${describe(wanted)}`, describe(own));
}

function describe({ kind, vocabularySize, sha256, endOfTextId }: PreparedDataset['tokenizer']): string {
  return `${kind} of ${vocabularySize} tokens, end of text ${endOfTextId} (${sha256.slice(0, 12)})`;
}

/** Data sets that are trained on and are prepared. */
export function trainedParts(parts: readonly NamedDataset[]) {
  return parts.flatMap(({ dataset, weight, head }) =>
    weight > 0 && head?.prepared ? [{ dataset, weight, tokenCount: head.prepared.train.tokenCount }] : [],
  );
}

/**
 * A data set that was prepared before the ends of chats were stored has masks that cut at every end token. If the turns of a chat end with
 * that token, the model would see only its last turn.
 */
export function checkMasks(
  checks: FieldChecks,
  parts: readonly NamedDataset[],
  { batch }: Pick<ModelessRun, 'batch'>,
): void {
  if (!batch.maskDocuments) return;
  for (const { dataset, weight, head } of parts) {
    const { endsWithinCount = 0 } = head?.prepared?.train ?? {};
    if (weight > 0 && endsWithinCount > 0)
      checks.add(
        'spec.batch.mask_documents',
        `false with ${dataset}, whose chats have the token that ends a text within them (${endsWithinCount} times): each would begin a document there; prepared again, it says where chats end`,
        true,
      );
  }
}

/** The most steps in which no training part is read twice. */
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
