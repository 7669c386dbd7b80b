import { baseKinds } from './packedBytes.js';
import {
  count,
  flag,
  list,
  longText,
  name,
  number,
  object,
  oneOf,
  orMissing,
  orNull,
  path,
  reason,
  sha256,
  union,
  type ObjectOf,
  type UnionOf,
} from './shapes.js';
import { stepSpan } from './stepSpan.js';
import { layerGraphs, phases, stopReasons, targetModules } from './words.js';

/** How one kind of adapted layer is computed. */
export const plannedGraph = { module: oneOf(targetModules), graph: oneOf(layerGraphs) };

/** Effect of a restart on one kind of layer; ranks are means over the measured layers, 0 if there are none. */
export const restartModule = {
  module: oneOf(targetModules),
  deltaNorm: number,
  effectiveRank: number,
  rankAboveOnePercent: number,
  measuredLayerCount: count,
};

/** Distribution of the singular values of one layer's change. */
export const layerRank = {
  layer: name,
  effectiveRank: number,
  rankAboveOnePercent: count,
  adapterRank: count,
};

/** Result of an evaluation on one data set; loss and the other values are 0 if it has no held-out part. */
export const datasetEvaluation = {
  /** Resource name. */
  dataset: name,
  loss: number,
  perplexity: number,
  bitsPerByte: number,
  tokenCount: count,
  /** Passes over its training part so far. */
  epochs: number,
};

/** How well a model answers multiple-choice questions. */
export const choiceEvaluation = {
  questionCount: count,
  /** Share of questions whose correct choice has the highest log-probability; on a tie, the first choice counts. */
  accuracy: number,
  /** The same by log-probability per byte, so that long choices are not at a disadvantage. */
  normalizedAccuracy: number,
  /** Mean log-probability of the correct choices, in nats. */
  logProbability: number,
};

/** Result of a named evaluation; either of a data set or of questions. */
const namedEvaluation = {
  name,
  /** Steps taken before it. */
  step: count,
  dataset: orMissing(object(datasetEvaluation)),
  choices: orMissing(object(choiceEvaluation)),
  seconds: number,
};

/** Width in nats of the bins in which document losses are counted; the last bin also counts everything above. */
export const lossBinNats = 0.25;
export const lossBinCount = 48;
/** Most documents that a report lists. */
export const worstDocumentsMax = 8;

/** The part of a document within one sequence. */
export const documentLoss = {
  step: count,
  /** Number of its sequence in the run. */
  sequence: count,
  /** Position of its first target in the sequence. */
  firstToken: count,
  /** Number of targets that count towards the loss. */
  tokenCount: count,
  /** Mean loss of these targets, in nats; like `excess` not finite if the step's loss is not. */
  loss: number,
  /** Sum of its losses minus the step's mean times its number of targets: what it adds to a jump. */
  excess: number,
};

/** Document losses over several steps. */
const documents = {
  firstStep: count,
  /** Last of these steps. */
  step: count,
  /** Whether this reports a single step because its loss jumped. */
  isSpike: flag,
  documentCount: count,
  /** Number of documents per bin of mean loss. */
  histogram: list(lossBinCount, count),
  /** The documents that add most to the loss of their step. */
  worst: list(worstDocumentsMax, object(documentLoss)),
};

export const bestEvaluation = { step: count, loss: number };

/** A restart and the check that it was one: what changed, and that the computed function did not. */
const restart = {
  /** From 1. */
  restart: count,
  deltaNorm: number,
  /** Largest change of a logit on the probe, and its limit (mergeDrift.ts). */
  logitChangeMax: number,
  logitChangeTolerance: number,
  momentsZeroedRatio: number,
  ranks: list(1024, object(layerRank)),
  effectiveRank: number,
  modules: list(targetModules.length, object(restartModule)),
  /** Rate of the step before the restart, and of the step after it. */
  learningRateBefore: number,
  learningRateAfter: number,
  /** Loss on the probe, in the run's precision, just before and just after. */
  lossBefore: number,
  lossAfter: number,
  seconds: number,
};

/**
 * What a run reports, by kind: the only description of a trainer's events. The types of the engine, the check of what a trainer sends and
 * the fields of event.proto are derived from it. The journal stores events as they are, so they are plain data.
 */
export const trainingEvents = {
  step: {
    step: count,
    phase: oneOf(phases),
    loss: number,
    gradientNorm: number,
    learningRate: number,
    tokenCount: count,
    trainedTokens: count,
    stepSeconds: number,
    /** There was no update, because loss or gradient was not finite or no target counted. */
    skipped: flag,
    /** The job asks to omit this step: nothing was computed. */
    omitted: orMissing(flag),
    residentBytes: count,
    /** Missing if the event stands for a single step. */
    span: orMissing(object(stepSpan)),
  },
  evaluation: {
    /** Steps taken before it. */
    step: count,
    loss: number,
    perplexity: number,
    bitsPerByte: number,
    tokenCount: count,
    seconds: number,
    /** One entry per data set of the run. */
    datasets: orMissing(list(1024, object(datasetEvaluation))),
  },
  namedEvaluation,
  restart: {
    /** Step before which it happened. */
    step: count,
    ...restart,
  },
  /** How the adapter phase is computed; the choice depends only on the job and the instruction set. */
  plan: {
    /** The next step. */
    step: count,
    /** For the adapted modules. */
    graphs: list(targetModules.length, object(plannedGraph)),
    /** Operations of a step in the adapted layers, in equivalents of a product with the base; as planned, and with separate paths only. */
    plannedOperations: number,
    separateOperations: number,
    /** Seconds of a step up to its gradients, as just measured; null if not measured (planReport.ts). */
    plannedSeconds: orNull(number),
    separateSeconds: orNull(number),
    recomputation: oneOf(['none', 'blocks']),
    precision: oneOf(['float32', 'bfloat16']),
    basePrecision: oneOf(baseKinds),
    /** Instruction set of native products; empty elsewhere. */
    instructionSet: name,
  },
  checkpoint: {
    /** Step at which a run resumes. */
    step: count,
    /** Folder, complete and synced, inside the checkpoints folder. */
    path,
    sizeBytes: count,
    manifestSha256: sha256,
    seconds: number,
    /** The evaluation with the lowest loss so far, whose checkpoint is this or an earlier one; only if the job keeps it. */
    best: orMissing(object(bestEvaluation)),
  },
  /** The run was changed: from this step on, updates up to this number apply. */
  update: {
    step: count,
    number: count,
    /** Multiplies the schedule's learning rate. */
    learningRateFactor: number,
    /** In all phases. */
    stepCount: count,
    /** Learning rate of the step without and with the change. */
    learningRateBefore: number,
    learningRateAfter: number,
  },
  documents,
  /** The run ends before its last step. */
  stop: {
    /** Steps taken. */
    step: count,
    reason: oneOf(stopReasons),
    /** Value and limit that ended the run, in the unit of the setting; both are 0 for a request. */
    value: number,
    limit: number,
  },
  sample: { step: count, prompt: longText, text: longText },
  warning: { reason, message: longText },
};

export type TrainingEvent = UnionOf<'kind', typeof trainingEvents>;
export type DatasetEvaluation = ObjectOf<typeof datasetEvaluation>;
export type ChoiceReport = ObjectOf<typeof choiceEvaluation>;
export type NamedEvaluation = ObjectOf<typeof namedEvaluation>;
export type RestartReport = ObjectOf<typeof restart>;
export type DocumentLoss = ObjectOf<typeof documentLoss>;
export type DocumentsReport = ObjectOf<typeof documents>;
export type RestartModule = ObjectOf<typeof restartModule>;
export type LayerRank = ObjectOf<typeof layerRank>;

export const trainingEvent = union('kind', trainingEvents);
