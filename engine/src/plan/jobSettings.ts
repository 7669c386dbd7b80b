import { choice, flag, integer, kept, number, text, type Context, type Draft } from './setting.js';
import {
  adapterGraphs,
  adapterOptimizers,
  adapterScalings,
  deviceChoices,
  endsOfData,
  fullRankOptimizers,
  initialisations,
  jobKinds,
  momentResets,
  momentTypes,
  precisions,
  recomputations,
  reductionTypes,
  scheduleKinds,
  synchronizations,
  trainedFactorChoices,
  weightChoices,
  weightTypes,
} from './words.js';

/** Tokens in a micro-batch when the client does not say. */
const microBatchTokens = 2048;
/** As large as Hugging Face long made its own. */
export const shardBytesDefault = 5_000_000_000;

/** Settings of a JobSpec that are in no group. */
export const runSettings = {
  kind: choice('JobKind', jobKinds, { default: 'relora', isKept: true }),
  /** `int8Base`, `nf4Base` and `fp8Base` name how the frozen base is kept; what is trained is then computed as with `auto`. */
  precision: choice('Precision', precisions, { default: 'auto' }),
  recomputation: choice('Recomputation', recomputations, { default: 'auto', before: 'auto' }),
  endOfData: choice('EndOfData', endsOfData, { default: 'repeat', before: 'repeat' }),
  seed: integer({ default: 0, min: 0, max: 2 ** 31 - 1, isKept: true }),
  priority: integer({ default: 0, min: -100, max: 100 }),
  device: choice(null, deviceChoices, { default: 'auto' }),
  /** An event for each step; else at most ten a second, which then stand for several steps each. */
  everyStepEvent: flag({ default: false, before: true }),
  /** Steps whose documents are reported together by their losses; 0 for none. */
  documentWindowStepCount: integer({
    // A thousand reports a job at most, however long it is.
    default: ({ spec }) => Math.max(100, Math.ceil((spec.warmStart.stepCount + spec.stepCount) / 1000)),
    min: 0,
    max: 1_000_000_000,
    before: 0,
  }),
  /** Processes that compute a part of each batch. */
  replicas: integer({ default: 1, min: 1, max: ({ replicasMax }) => replicasMax, before: 1 }),
  /** The fewest that a run may resume with; 0: no fewer than `replicas`. */
  replicasMin: integer({ default: 0, min: 0, max: ({ replicasMax }) => replicasMax, before: 0 }),
  /** What the gradients of several processes travel as. */
  reductionType: choice('ReductionType', reductionTypes, { default: 'float32', before: 'float32' }),
  /** When they agree on their weights. */
  synchronization: choice('Synchronization', synchronizations, { default: 'everyStep', before: 'everyStep' }),
};

/**
 * Versions of the rules by which a run cuts its data and draws its numbers. A rule that has to change gets another version: new
 * jobs take the newest, and a job keeps to its end those that it was created with (docs/architecture.md says how to add one).
 */
export const streamSettings = kept({
  /**
   * How the training part is cut into sequences. 1: alike in every pass, so that up to a sequence at its end, and its first token,
   * are never learned. 2: each pass begins where the one before it ended.
   */
  dataCut: integer({ default: 2, min: 1, max: 2, before: 1 }),
  /**
   * How masks of dropout are drawn. 1: from a stream of each micro-batch. 2: counted by the sequence's place in the run, the same
   * however a step is cut into micro-batches (engine/device/dropout.ts).
   */
  dropout: integer({ default: 2, min: 1, max: 2, before: 1 }),
  /**
   * How the rate of full-rank steps between cycles rises. 1: over a twentieth of them, rounded down, so that fewer than 20 begin at
   * the whole rate with moments of zero. 2: over a step at least where that leaves one at the whole rate.
   */
  fullRankWarmup: integer({ default: 2, min: 1, max: 2, before: 1 }),
});

/** Shape of a Llama model, in the terms of Hugging Face's config.json. */
export const modelSettings = kept({
  hiddenSize: integer({ default: 64, min: 2, max: 65_536 }),
  intermediateSize: integer({ default: 64, min: 1, max: 1_048_576 }),
  numHiddenLayers: integer({ default: 1, min: 1, max: 512 }),
  numAttentionHeads: integer({ default: 1, min: 1, max: 1024 }),
  numKeyValueHeads: integer({ default: ({ spec }) => spec.model!.numAttentionHeads, min: 1, max: 1024 }),
  maxPositionEmbeddings: integer({ default: 1024, min: 8, max: 1 << 20 }),
  ropeTheta: number({ default: 10_000, min: 1, max: 1e9, above: true }),
  rmsNormEps: number({ default: 1e-6, min: 0, max: 0.1, above: true }),
  vocabSize: integer({
    default: ({ vocabularySize }) => vocabularySize ?? 257,
    min: 2,
    max: ({ vocabularySizeMax }) => vocabularySizeMax,
  }),
  tieWordEmbeddings: flag({ default: false }),
  /** A bias on the query, key and value projections, as in Qwen2. */
  attentionBias: flag({ default: false, before: false }),
  /** Features of a head; 0 for hiddenSize / numAttentionHeads. At most what every device computes. */
  headDim: integer({ default: 0, min: 0, max: 128, before: 0 }),
  /** A norm of each head of queries and keys before they are turned, as in Qwen3. */
  qkNorm: flag({ default: false, before: false }),
  /** Each so-manieth layer has no rotary embedding, as in SmolLM3; 0: all have one. */
  noRopeInterval: integer({ default: 0, min: 0, max: 512, before: 0 }),
});

export const batchSettings = {
  sequenceLength: integer({
    default: (context) => Math.min(512, longestSequence(context)),
    min: 2,
    max: longestSequence,
    isKept: true,
  }),
  sequenceCount: integer({ default: 16, min: 1, max: 65_536, isKept: true }),
  microBatchSequenceCount: integer({
    default: ({ spec }) => defaultMicroBatch(spec.batch),
    min: 1,
    max: ({ spec }) => spec.batch.sequenceCount,
  }),
  /** Documents that share a sequence do not see each other, and each begins at position 0. In training alone. */
  maskDocuments: flag({ default: false, before: false }),
};

export const adapterSettings = kept({
  rank: integer({
    default: ({ rankMax }) => Math.min(128, rankMax),
    min: 1,
    max: ({ rankMax }) => rankMax,
  }),
  alpha: number({
    default: ({ alphaOverRank, spec }) => (alphaOverRank === null ? 32 : alphaOverRank * spec.adapter!.rank),
    min: 0,
    max: 1e6,
    above: true,
  }),
  dropout: number({ default: 0, min: 0, max: 0.9 }),
  /** Steps between restarts; for `lora` equal to stepCount. */
  cycleStepCount: integer({
    default: ({ spec }) => spec.stepCount,
    min: 1,
    max: ({ spec }) => spec.stepCount,
  }),
  /** Each cycle is so many times as long as the one before; 1: all alike. */
  cycleGrowth: number({ default: 1, min: 1, max: 10, before: 1 }),
  restartWarmupStepCount: integer({
    // A step at least: without a warm-up the first updates after a restart, whose moments are new, have the whole rate.
    default: ({ spec }) => restartWarmup(spec.adapter!.cycleStepCount),
    min: 0,
    max: ({ spec }) => Math.max(0, spec.adapter!.cycleStepCount - 1),
  }),
  /** Full-rank steps between a merge and the adapters of the next cycle; part of its length. */
  fullRankStepCount: integer({
    default: 0,
    min: 0,
    max: ({ spec }) => Math.max(0, spec.adapter!.cycleStepCount - spec.adapter!.restartWarmupStepCount - 1),
    before: 0,
  }),
  /** Of those full-rank steps. */
  fullRankOptimizer: choice('FullRankOptimizer', fullRankOptimizers, { default: 'adamw', before: 'adamw' }),
  adapterOptimizer: choice('AdapterOptimizer', adapterOptimizers, { default: 'adamw', before: 'adamw' }),
  initialisation: choice('Initialisation', initialisations, { default: 'random', before: 'random' }),
  momentReset: choice('MomentReset', momentResets, {
    default: ({ spec }) => (carriesMoments(spec.adapter!) ? 'carry' : 'zero'),
  }),
  momentPruneRatio: number({ default: 0.9, min: 0, max: 1, above: true, below: true }),
  trainableScale: flag({ default: false }),
  /** How an adapter is computed, not what it is. */
  graph: choice('AdapterGraph', adapterGraphs, { default: 'auto', before: 'auto', isKept: false }),
  trainedFactors: choice('TrainedFactors', trainedFactorChoices, { default: 'both', before: 'both' }),
  scaling: choice('AdapterScaling', adapterScalings, { default: 'alphaOverRank', before: 'alphaOverRank' }),
  /** Learning rate of B over that of A (LoRA+). */
  bLearningRateRatio: number({ default: 1, min: 0, max: 1000, above: true, before: 1 }),
});

export const warmStartSettings = kept({
  stepCount: integer({
    default: ({ spec }) => (isWarmStartUsual(spec) ? Math.floor(spec.stepCount / 4) : 0),
    min: 0,
    max: ({ stepsMax }) => stepsMax,
  }),
  learningRate: number({ default: 5e-4, min: 0, max: 1, above: true }),
  optimizer: choice('FullRankOptimizer', fullRankOptimizers, { default: 'adamw', before: 'adamw' }),
  warmupStepCount: integer({
    default: ({ spec }) => Math.floor(spec.warmStart.stepCount / 10),
    min: 0,
    max: ({ spec }) => spec.warmStart.stepCount,
  }),
});

/** Usual rates of each kind, not its best for a model and its data: that takes a sweep. */
export function defaultPeakRate(kind: (typeof jobKinds)[number]): number {
  return kind === 'fullRank' ? 5e-4 : 1e-3;
}

export const learningRateSettings = {
  peak: number({
    default: ({ spec }) => defaultPeakRate(spec.kind),
    min: 0,
    max: 1,
    above: true,
  }),
  schedule: choice('ScheduleKind', scheduleKinds, {
    default: ({ spec }) => (spec.kind === 'relora' ? 'jaggedCosine' : 'cosine'),
  }),
  warmupStepCount: integer({
    default: ({ spec }) => Math.floor(firstCycle(spec) / 20),
    min: 0,
    max: ({ spec }) => firstCycle(spec),
  }),
  minRatio: number({ default: 0.1, min: 0, max: 1, above: true }),
};

export const optimizerSettings = {
  beta1: number({ default: 0.9, min: 0, max: 1, below: true, isKept: true }),
  beta2: number({ default: 0.999, min: 0, max: 1, below: true, isKept: true }),
  epsilon: number({ default: 1e-8, min: 0, max: 1, above: true }),
  weightDecay: number({ default: 0, min: 0, max: 10 }),
  gradientNormMax: number({ default: 1, min: 0, max: 1e6, above: true }),
  nonfiniteStepCountMax: integer({ default: 0, min: 0, max: ({ stepsMax }) => stepsMax }),
  momentType: choice('MomentType', momentTypes, { default: 'float32', before: 'float32' }),
  /** Of jobs that train all weights. */
  fullRankOptimizer: choice('FullRankOptimizer', fullRankOptimizers, {
    default: 'adamw',
    before: 'adamw',
    isKept: true,
  }),
  /** Decay of the one moment of Muon and LoRA-Muon. */
  momentum: number({ default: 0.95, min: 0, max: 1, below: true, before: 0.95, isKept: true }),
};

/** Most seconds between two of what is done by time: 30 days. */
const everySecondsMax = 2_592_000;
/** So much work a crash may cost, whatever a step takes. */
const everySecondsDefault = 900;

/**
 * Every so many seconds, beside the steps; 0 for by steps alone. Nothing that is trained depends on it. A job of 0.1 counts steps
 * alone, and so does one that asks for steps and not for seconds (`withCadence`).
 */
const everySeconds = (seconds: number) =>
  integer({ default: seconds, min: 0, max: everySecondsMax, before: 0 });

/** What a client says of a cadence: who names steps alone means these alone. */
export function withCadence<Given extends { everyStepCount?: unknown; everySeconds?: unknown }>(
  given: Given | undefined,
): Given | undefined {
  return given?.everyStepCount !== undefined && given.everySeconds === undefined
    ? { ...given, everySeconds: 0 }
    : given;
}

export const evaluationSettings = {
  everyStepCount: integer({ default: ({ spec }) => tenthOf(spec), min: 0, max: ({ stepsMax }) => stepsMax }),
  tokenCount: integer({ default: 65_536, min: 1, max: 2 ** 40 }),
  /** 0: the whole held-out part. */
  finalTokenCount: integer({ default: ({ heldOutTokenCount }) => heldOutTokenCount, min: 0, max: 2 ** 40 }),
  everySeconds: everySeconds(everySecondsDefault),
};

/** Of what a run is scored on beside its held-out part. */
export const namedEvaluationSettings = {
  /** Of a held-out part; 0: all of it. */
  tokenCount: integer({ default: 65_536, min: 0, max: 2 ** 40 }),
  everyStepCount: integer({ default: ({ spec }) => tenthOf(spec), min: 0, max: ({ stepsMax }) => stepsMax }),
  everySeconds: everySeconds(0),
};

export const checkpointSettings = {
  everyStepCount: integer({
    default: ({ spec }) => tenthOf(spec),
    min: 1,
    max: ({ stepsMax }) => stepsMax,
  }),
  keepCount: integer({ default: 2, min: 2, max: 1000 }),
  everySeconds: everySeconds(everySecondsDefault),
  /** The checkpoint of the lowest held-out loss stays beside the newest; each evaluation that is the best so far saves one. */
  keepBest: flag({ default: false, before: false }),
};

/** What ends a run before its last step; 0 for none. */
export const stopSettings = {
  /** Evaluations in a row without a lower held-out loss. */
  patienceEvaluationCount: integer({ default: 0, min: 0, max: 1_000_000, before: 0 }),
  /** By which a loss has to be below the best before it, to count as lower. */
  minImprovement: number({ default: 0, min: 0, max: 100, before: 0 }),
  /** Held-out loss that is low enough. */
  evaluationLoss: number({ default: 0, min: 0, max: 100, before: 0 }),
  /** Tokens trained on. */
  tokenCount: integer({ default: 0, min: 0, max: Number.MAX_SAFE_INTEGER, before: 0 }),
  /** Since the job began, with all pauses: at most ten years. */
  seconds: integer({ default: 0, min: 0, max: 315_360_000, before: 0 }),
  /** That its trainers held their device, those that crashed too. */
  deviceHours: number({ default: 0, min: 0, max: 1e6, before: 0 }),
};

export const sampleSettings = {
  everyStepCount: integer({ default: 0, min: 0, max: ({ stepsMax }) => stepsMax }),
  prompt: text({ default: '', lengthMax: 4096 }),
  tokenCount: integer({ default: 64, min: 1, max: 4096 }),
  everySeconds: everySeconds(0),
};

/** What is exported at the end of a run. */
export const exportSettings = {
  weightType: choice('WeightType', weightTypes, { default: 'float32' }),
  /** Largest file of weights in Hugging Face layout; at most as many bytes as a double counts exactly. */
  shardBytesMax: integer({ default: shardBytesDefault, min: 1, max: Number.MAX_SAFE_INTEGER }),
  weights: choice('ExportedWeights', weightChoices, { default: 'last', before: 'last' }),
};

/** Directions of the gradient take the place of a warm start where A keeps them (LoQT, arXiv 2405.16528). */
export function needsWarmStart({ initialisation, trainedFactors }: NonNullable<Draft['adapter']>): boolean {
  return !(initialisation === 'gradientSvd' && trainedFactors === 'bOnly');
}

/** Whether the new A spans the old one, so that what is known of B's direction still holds. */
function carriesMoments({ initialisation, adapterOptimizer }: NonNullable<Draft['adapter']>): boolean {
  return adapterOptimizer === 'loraMuon' && (initialisation === 'oldSpan' || initialisation === 'halfSpan');
}

/** Base weights are past what a warm start is for. */
function isWarmStartUsual({ adapter, baseWeightsFolder }: Draft): boolean {
  return adapter !== null && baseWeightsFolder === null && needsWarmStart(adapter);
}

/** A twentieth of a cycle, and a step at least where that leaves one at the whole rate. */
function restartWarmup(cycleStepCount: number): number {
  return Math.min(Math.max(1, Math.floor(cycleStepCount / 20)), cycleStepCount - 1);
}

function longestSequence({ sequenceLengthMax, spec }: Context): number {
  return Math.min(sequenceLengthMax, spec.model?.maxPositionEmbeddings ?? Infinity);
}

/** As many sequences as keep 2048 tokens at once and divide the batch; at least one. */
function defaultMicroBatch({ sequenceLength, sequenceCount }: Draft['batch']): number {
  let micro = Math.max(1, Math.min(sequenceCount, Math.floor(microBatchTokens / sequenceLength)));
  while (sequenceCount % micro !== 0) micro--;
  return micro;
}

/** Steps of the first cycle, or of the run where it has none. */
function firstCycle({ adapter, stepCount }: Draft): number {
  return adapter?.cycleStepCount ?? stepCount;
}

/** A tenth of all steps. */
function tenthOf({ warmStart, stepCount }: Draft): number {
  return Math.max(1, Math.floor((warmStart.stepCount + stepCount) / 10));
}
