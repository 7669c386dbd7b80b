import * as plan from '@relora/engine/plan';
import * as contract from '@relora/sdk/contract';
import { waitReasons } from '../jobs/explainJob.js';
import { usageDimensions } from '../usage/usageStore.js';
import { metrics } from '../jobs/metricSeries.js';

/** `int8Base` as the contract writes it, INT8_BASE. */
type Capitals<Word extends string> = Word extends `${infer Head}${infer Tail}`
  ? `${Head extends Lowercase<Head> ? Uppercase<Head> : `_${Head}`}${Capitals<Tail>}`
  : Word;

export function capitals(word: string): string {
  return word.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
}

/** An enum of the contract, and the server's words for it: the same names in camel case. */
export interface EnumWords<Word extends string = string, Value extends string = string> {
  words: readonly Word[];
  /** Never `UNSPECIFIED`. */
  to: Readonly<Record<Word, Value>>;
  /** Without `UNSPECIFIED`, whose meaning depends on the field. */
  from: Readonly<Record<string, Word>>;
}

/** Compiles only if the words are exactly the names of the enum. */
function words<const Word extends string, Enum extends Readonly<Record<Capitals<Word>, string>>>(
  list: readonly Word[],
  values: Enum &
    (Exclude<keyof Enum, 'UNSPECIFIED' | 'UNRECOGNIZED'> extends Capitals<Word> ? unknown : never),
): EnumWords<Word, Enum[Capitals<Word>]> {
  const pairs = list.map((word) => [word, values[capitals(word) as Capitals<Word>]] as const);
  return {
    words: list,
    to: Object.fromEntries(pairs) as unknown as Record<Word, Enum[Capitals<Word>]>,
    from: Object.fromEntries(pairs.map(([word, value]) => [value, word])),
  };
}

/** Enums by their names in the contract. */
export const enums = {
  WaitReason: words(waitReasons, contract.WaitReason),
  UsageDimension: words(usageDimensions, contract.UsageDimension),
  JobKind: words(plan.jobKinds, contract.JobKind),
  Precision: words(plan.precisions, contract.Precision),
  HeadPrecision: words(plan.headPrecisions, contract.HeadPrecision),
  Recomputation: words(plan.recomputations, contract.Recomputation),
  EndOfData: words(plan.endsOfData, contract.EndOfData),
  MomentReset: words(plan.momentResets, contract.MomentReset),
  FullRankOptimizer: words(plan.fullRankOptimizers, contract.FullRankOptimizer),
  AdapterOptimizer: words(plan.adapterOptimizers, contract.AdapterOptimizer),
  ReductionType: words(plan.reductionTypes, contract.ReductionType),
  Synchronization: words(plan.synchronizations, contract.Synchronization),
  MomentType: words(plan.momentTypes, contract.MomentType),
  AdapterGraph: words(plan.adapterGraphs, contract.AdapterGraph),
  AdapterScaling: words(plan.adapterScalings, contract.AdapterScaling),
  Initialisation: words(plan.initialisations, contract.Initialisation),
  TrainedFactors: words(plan.trainedFactorChoices, contract.TrainedFactors),
  ScheduleKind: words(plan.scheduleKinds, contract.ScheduleKind),
  TargetModule: words(plan.targetModules, contract.TargetModule),
  WeightType: words(plan.ggufTypes, contract.WeightType),
  ExportFormat: words(plan.exportFormats, contract.ExportFormat),
  JobPhase: words(plan.phases, contract.JobPhase),
  StopReason: words(plan.stopReasons, contract.StopReason),
  ExportedWeights: words(plan.weightChoices, contract.ExportedWeights),
  JobState: words(
    ['queued', 'starting', 'running', 'paused', 'succeeded', 'failed', 'cancelled'],
    contract.JobState,
  ),
  Metric: words(metrics, contract.Metric),
  ArtifactKind: words(['mergedModel', 'adapter'], contract.ArtifactKind),
  ArtifactState: words(['pending', 'ready', 'failed'], contract.ArtifactState),
  DatasetFormat: words(['text', 'jsonl', 'parquet', 'json', 'csv'], contract.DatasetFormat),
  DatasetSplit: words(['train', 'heldOut'], contract.DatasetSplit),
  DatasetState: words(['uploading', 'preparing', 'ready', 'failed'], contract.DatasetState),
  WebhookDeliveryState: words(['pending', 'dead'], contract.WebhookDeliveryState),
  WeightsState: words(['uploading', 'ready'], contract.WeightsState),
};
