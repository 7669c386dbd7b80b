import * as tables from './jobSettings.js';
import { largestRank } from './parameters.js';
import type { LlamaConfig, RunSpec } from './runSpec.js';
import { settle, trusting, type Context, type Draft, type Settings } from './setting.js';
import { targetModules } from './words.js';

type Part<T> = T extends readonly unknown[] ? T : T extends object ? { [K in keyof T]?: T[K] } : T;
/** The given part of a specification; `adapter: null` means full rank. */
export type GivenSpec = { [K in keyof RunSpec]?: Part<RunSpec[K]> };

/** Context without the limits of any client or server. */
const unlimited: Omit<Context, 'spec'> = {
  stepsMax: Infinity,
  sequenceLengthMax: Infinity,
  rankMax: Infinity,
  vocabularySizeMax: Infinity,
  replicasMax: Infinity,
  vocabularySize: null,
  heldOutTokenCount: 0,
  alphaOverRank: null,
};

/** Completes a partial specification with the defaults that a server would fill in. Checks nothing. */
export function defaultRunSpec(given: GivenSpec = {}): RunSpec {
  const { kind = given.adapter === null ? 'fullRank' : 'relora', stepCount = 1 } = given;
  const spec = emptyDraft(kind, stepCount, given.baseWeightsFolder ?? null);
  const context: Context = { ...unlimited, spec };
  const fill = <T extends Settings>(
    table: T,
    values: Partial<Record<keyof T, unknown>> | undefined,
    target = {},
  ) => settle(table, values, context, trusting, target);

  const shape = fill(tables.modelSettings, given.model, (spec.model = emptyModel()));
  const model: LlamaConfig = { ...shape, ropeScaling: given.model?.ropeScaling ?? null };
  const batch = fill(tables.batchSettings, given.batch, spec.batch);
  const adapter =
    given.adapter === null || kind === 'fullRank' ? null : adapterOf(given.adapter ?? {}, model, context);
  const warmStart = fill(tables.warmStartSettings, given.warmStart, spec.warmStart);
  const exported = fill(tables.exportSettings, given.export);
  return {
    ...fill(tables.runSettings, { ...given, kind }),
    model,
    baseWeightsFolder: given.baseWeightsFolder ?? null,
    baseWeightsName: given.baseWeightsName ?? null,
    baseWeightsHash: given.baseWeightsHash ?? 'content',
    dataset: given.dataset ?? given.mixture?.[0]?.dataset ?? 'datasets/text',
    mixture: given.mixture ?? [],
    warmStart,
    adapter,
    stepCount,
    omittedSteps: given.omittedSteps ?? [],
    omittedDocuments: given.omittedDocuments ?? [],
    acceptedDevices: given.acceptedDevices ?? [],
    streams: fill(tables.streamSettings, given.streams),
    recipe: given.recipe ?? 'paper',
    learningRate: fill(tables.learningRateSettings, given.learningRate),
    optimizer: fill(tables.optimizerSettings, given.optimizer),
    batch,
    evaluation: fill(tables.evaluationSettings, tables.withCadence(given.evaluation)),
    evaluations: (given.evaluations ?? []).map(({ name, dataset, questions, ...settings }) => ({
      ...fill(tables.namedEvaluationSettings, settings),
      ...{ name, dataset, questions },
    })),
    checkpoint: fill(tables.checkpointSettings, tables.withCadence(given.checkpoint)),
    stop: fill(tables.stopSettings, given.stop),
    sample: fill(tables.sampleSettings, tables.withCadence(given.sample)),
    export: { formats: ['huggingFace'], ggufType: exported.weightType, ...given.export, ...exported },
  };
}

/** The draft before the tables fill it in. */
export function emptyDraft(kind: Draft['kind'], stepCount: number, baseWeightsFolder: string | null): Draft {
  return {
    kind,
    model: null,
    baseWeightsFolder,
    stepCount,
    batch: { sequenceLength: 0, sequenceCount: 0 },
    adapter: null,
    warmStart: { stepCount: 0 },
  };
}

export function emptyModel(): NonNullable<Draft['model']> {
  return { numAttentionHeads: 0, maxPositionEmbeddings: 0 };
}

export function emptyAdapter(): NonNullable<Draft['adapter']> {
  return {
    rank: 0,
    cycleStepCount: 0,
    restartWarmupStepCount: 0,
    initialisation: '',
    adapterOptimizer: '',
    trainedFactors: '',
  };
}

function adapterOf(
  given: NonNullable<GivenSpec['adapter']>,
  model: LlamaConfig,
  context: Context,
): NonNullable<RunSpec['adapter']> {
  const modules = given.targetModules ?? [...targetModules];
  const moduleRanks = given.moduleRanks ?? {};
  const others = modules.filter((module) => moduleRanks[module] === undefined);
  const inner: Context = { ...context, rankMax: largestRank(model, others) };
  context.spec.adapter = emptyAdapter();
  const settings = settle(tables.adapterSettings, given, inner, trusting, context.spec.adapter);
  return { ...settings, targetModules: modules, moduleRanks };
}
