import { choice, flag, integer, kept, number, text, type Context, type Draft } from './setting.js';
import { headDimMax } from './parameters.js';
import {
  adapterGraphs,
  adapterOptimizers,
  adapterScalings,
  deviceChoices,
  endsOfData,
  fullRankOptimizers,
  headPrecisions,
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

/** Tokens in a micro-batch if the client does not set its size. */
const microBatchTokens = 2048;
/** The former default of Hugging Face. */
export const shardBytesDefault = 5_000_000_000;

/** Settings at the top level of a JobSpec. */
export const runSettings = {
  kind: choice('JobKind', jobKinds, { default: 'relora', isKept: true }),
  /** `int8Base`, `nf4Base` and `fp8Base` say how the frozen base is stored; trained weights then have the precision of `auto`. */
  precision: choice('Precision', precisions, { default: 'auto' }),
  headPrecision: choice('HeadPrecision', headPrecisions, { default: 'same', before: 'same' }),
  recomputation: choice('Recomputation', recomputations, { default: 'auto', before: 'auto' }),
  endOfData: choice('EndOfData', endsOfData, { default: 'repeat', before: 'repeat' }),
  seed: integer({ default: 0, min: 0, max: 2 ** 31 - 1, isKept: true }),
  priority: integer({ default: 0, min: -100, max: 100 }),
  device: choice(null, deviceChoices, { default: 'auto' }),
  /** One event per step; otherwise at most ten a second, each of which stands for several steps. */
  everyStepEvent: flag({ default: false, before: true }),
  /** Steps per report of document losses; 0: no reports. */
  documentWindowStepCount: integer({
    // At most a thousand reports per job, however long it is.
    default: ({ spec }) => Math.max(100, Math.ceil((spec.warmStart.stepCount + spec.stepCount) / 1000)),
    min: 0,
    max: 1_000_000_000,
    before: 0,
  }),
  /** Processes that each compute a part of every batch. */
  replicas: integer({ default: 1, min: 1, max: ({ replicasMax }) => replicasMax, before: 1 }),
  /** The fewest processes that a run may resume with; 0: no fewer than `replicas`. */
  replicasMin: integer({ default: 0, min: 0, max: ({ replicasMax }) => replicasMax, before: 0 }),
  /** Type in which several processes exchange gradients. */
  reductionType: choice('ReductionType', reductionTypes, { default: 'float32', before: 'float32' }),
  /** When processes agree on their weights. */
  synchronization: choice('Synchronization', synchronizations, { default: 'everyStep', before: 'everyStep' }),
};

/**
 * Versions of the rules by which a run cuts its data and draws its numbers. A rule that has to change gets a new version: new jobs use the
 * newest, and a job keeps the ones it was created with to its end (docs/architecture.md says how to add one).
 */
export const streamSettings = kept({
  /**
   * How the training part is cut into sequences. 1: at the same places in every pass, so that its first token and up to a sequence at its
   * end are never learned. 2: each pass begins where the previous one ended.
   */
  dataCut: integer({ default: 2, min: 1, max: 2, before: 1 }),
  /**
   * How dropout masks are drawn. 1: from a stream per micro-batch. 2: from a counter based on the sequence's position in the run, so that
   * the cut into micro-batches does not matter (engine/device/dropout.ts).
   */
  dropout: integer({ default: 2, min: 1, max: 2, before: 1 }),
  /**
   * How the rate of full-rank steps between cycles rises. 1: over a twentieth of them, rounded down, so that fewer than 20 steps begin at
   * the full rate with zero moments. 2: over at least one step, if that leaves one at the full rate.
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
  /** Features of a head; 0: hiddenSize / numAttentionHeads. At most what every device supports. */
  headDim: integer({ default: 0, min: 0, max: headDimMax, before: 0 }),
  /** A norm of each head of queries and keys before rotation, as in Qwen3. */
  qkNorm: flag({ default: false, before: false }),
  /** Every n-th layer has no rotary embedding, as in SmolLM3; 0: all have one. */
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
  /** Documents in the same sequence do not attend to each other, and each begins at position 0. In training only. */
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
  /** Steps between restarts; for `lora` this equals stepCount. */
  cycleStepCount: integer({
    default: ({ spec }) => spec.stepCount,
    min: 1,
    max: ({ spec }) => spec.stepCount,
  }),
  /** Length of each cycle over that of the one before; 1: all are equal. */
  cycleGrowth: number({ default: 1, min: 1, max: 10, before: 1 }),
  restartWarmupStepCount: integer({
    // At least one step: after a restart moments are zero, and without a warm-up the first updates would use the full rate.
    default: ({ spec }) => restartWarmup(spec.adapter!.cycleStepCount),
    min: 0,
    max: ({ spec }) => Math.max(0, spec.adapter!.cycleStepCount - 1),
  }),
  /** Full-rank steps between a merge and the adapters of the next cycle; they count as part of the cycle. */
  fullRankStepCount: integer({
    default: 0,
    min: 0,
    max: ({ spec }) => Math.max(0, spec.adapter!.cycleStepCount - spec.adapter!.restartWarmupStepCount - 1),
    before: 0,
  }),
  /** Optimizer of these full-rank steps. */
  fullRankOptimizer: choice('FullRankOptimizer', fullRankOptimizers, { default: 'adamw', before: 'adamw' }),
  adapterOptimizer: choice('AdapterOptimizer', adapterOptimizers, { default: 'adamw', before: 'adamw' }),
  initialisation: choice('Initialisation', initialisations, { default: 'random', before: 'random' }),
  momentReset: choice('MomentReset', momentResets, {
    default: ({ spec }) => (carriesMoments(spec.adapter!) ? 'carry' : 'zero'),
  }),
  momentPruneRatio: number({ default: 0.9, min: 0, max: 1, above: true, below: true }),
  trainableScale: flag({ default: false }),
  /** How an adapter is computed; it does not change what is trained. */
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

/** Usual rates of each kind. The best rate for a model and its data needs a sweep. */
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
  /** For jobs that train all weights. */
  fullRankOptimizer: choice('FullRankOptimizer', fullRankOptimizers, {
    default: 'adamw',
    before: 'adamw',
    isKept: true,
  }),
  /** Decay of the single moment of Muon and LoRA-Muon. */
  momentum: number({ default: 0.95, min: 0, max: 1, below: true, before: 0.95, isKept: true }),
};

/** Longest interval in seconds: 30 days. */
const everySecondsMax = 2_592_000;
/** Seconds of work that a crash may cost, however long a step takes. */
const everySecondsDefault = 900;

/**
 * Interval in seconds, in addition to the interval in steps; 0: by steps only. It does not affect what is trained. Jobs of 0.1, and jobs
 * that give an interval in steps but none in seconds (`withCadence`), go by steps only.
 */
const everySeconds = (seconds: number) =>
  integer({ default: seconds, min: 0, max: everySecondsMax, before: 0 });

/** If a client gives only an interval in steps, there is none in seconds. */
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

/** Settings of additional evaluations, besides the one on the held-out part. */
export const namedEvaluationSettings = {
  /** Tokens of a held-out part; 0: all. */
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
  /** Keep the checkpoint of the lowest held-out loss in addition to the newest; each evaluation with a new lowest loss saves one. */
  keepBest: flag({ default: false, before: false }),
};

/** Conditions that end a run before its last step; 0: none. */
export const stopSettings = {
  /** Evaluations in a row without a lower held-out loss. */
  patienceEvaluationCount: integer({ default: 0, min: 0, max: 1_000_000, before: 0 }),
  /** How far below the previous best a loss must be to count as lower. */
  minImprovement: number({ default: 0, min: 0, max: 100, before: 0 }),
  /** Held-out loss at which the run ends. */
  evaluationLoss: number({ default: 0, min: 0, max: 100, before: 0 }),
  /** Number of tokens trained on. */
  tokenCount: integer({ default: 0, min: 0, max: Number.MAX_SAFE_INTEGER, before: 0 }),
  /** Since the job was created, pauses included: at most ten years. */
  seconds: integer({ default: 0, min: 0, max: 315_360_000, before: 0 }),
  /** Hours for which its trainers held a device, crashed trainers included. */
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
  /** Largest weights file in Hugging Face layout, in bytes; the maximum is the largest integer that a double represents exactly. */
  shardBytesMax: integer({ default: shardBytesDefault, min: 1, max: Number.MAX_SAFE_INTEGER }),
  weights: choice('ExportedWeights', weightChoices, { default: 'last', before: 'last' }),
};

/** If A keeps the directions of the gradient for the whole cycle, no warm start is needed (LoQT, arXiv 2405.16528). */
export function needsWarmStart({ initialisation, trainedFactors }: NonNullable<Draft['adapter']>): boolean {
  return !(initialisation === 'gradientSvd' && trainedFactors === 'bOnly');
}

/** Whether the new A spans the old one (or half of it), so that the momentum of B remains valid. */
function carriesMoments({ initialisation, adapterOptimizer }: NonNullable<Draft['adapter']>): boolean {
  return adapterOptimizer === 'loraMuon' && (initialisation === 'oldSpan' || initialisation === 'halfSpan');
}

/** A job that starts from base weights needs no warm start. */
function isWarmStartUsual({ adapter, baseWeightsFolder }: Draft): boolean {
  return adapter !== null && baseWeightsFolder === null && needsWarmStart(adapter);
}

/** A twentieth of a cycle, but at least one step if that leaves one at the full rate. */
function restartWarmup(cycleStepCount: number): number {
  return Math.min(Math.max(1, Math.floor(cycleStepCount / 20)), cycleStepCount - 1);
}

function longestSequence({ sequenceLengthMax, spec }: Context): number {
  return Math.min(sequenceLengthMax, spec.model?.maxPositionEmbeddings ?? Infinity);
}

/** The largest divisor of the batch whose sequences have at most 2048 tokens together; at least one sequence. */
function defaultMicroBatch({ sequenceLength, sequenceCount }: Draft['batch']): number {
  let micro = Math.max(1, Math.min(sequenceCount, Math.floor(microBatchTokens / sequenceLength)));
  while (sequenceCount % micro !== 0) micro--;
  return micro;
}

/** Steps of the first cycle, or of the whole run if it has no cycles. */
function firstCycle({ adapter, stepCount }: Draft): number {
  return adapter?.cycleStepCount ?? stepCount;
}

/** A tenth of all steps. */
function tenthOf({ warmStart, stepCount }: Draft): number {
  return Math.max(1, Math.floor((warmStart.stepCount + stepCount) / 10));
}
