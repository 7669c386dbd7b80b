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

/** What a restart did to one kind of layer; ranks are means over the layers that were measured, 0 where there are none. */
export const restartModule = {
  module: oneOf(targetModules),
  deltaNorm: number,
  effectiveRank: number,
  rankAboveOnePercent: number,
  measuredLayerCount: count,
};

/** How the singular values of one layer's change are spread. */
export const layerRank = {
  layer: name,
  effectiveRank: number,
  rankAboveOnePercent: count,
  adapterRank: count,
};

/** What an evaluation came to on one data set; loss and others are 0 where nothing of it is held out. */
export const datasetEvaluation = {
  /** Resource name. */
  dataset: name,
  loss: number,
  perplexity: number,
  bitsPerByte: number,
  tokenCount: count,
  /** How often its training part was read so far. */
  epochs: number,
};

/** How a model answers questions with choices. */
export const choiceEvaluation = {
  questionCount: count,
  /** Share of questions whose right choice has the highest log-probability; the first of equal ones counts. */
  accuracy: number,
  /** The same by log-probability per byte, so that long choices are not at a disadvantage. */
  normalizedAccuracy: number,
  /** Mean log-probability of the right choices, nats. */
  logProbability: number,
};

/** What the run was scored on under a name; either a data set or questions. */
const namedEvaluation = {
  name,
  /** Steps taken before it. */
  step: count,
  dataset: orMissing(object(datasetEvaluation)),
  choices: orMissing(object(choiceEvaluation)),
  seconds: number,
};

/** Losses of documents are counted by bins of so many nats; the last has all above, too. */
export const lossBinNats = 0.25;
export const lossBinCount = 48;
/** Documents that a report names. */
export const worstDocumentsMax = 8;

/** The part of a document that is in one sequence. */
export const documentLoss = {
  step: count,
  /** Number of its sequence in the run. */
  sequence: count,
  /** Place of its first target in the sequence. */
  firstToken: count,
  /** Targets that count. */
  tokenCount: count,
  /** Their mean, nats; with `excess` not finite where the step's is not. */
  loss: number,
  /** Sum of its losses less as many means of its step: what it adds to a jump. */
  excess: number,
};

/** Losses of the documents of some steps. */
const documents = {
  firstStep: count,
  /** Last of the steps. */
  step: count,
  /** The loss of the one step jumped. */
  isSpike: flag,
  documentCount: count,
  /** Of the mean losses, by bins. */
  histogram: list(lossBinCount, count),
  /** Those that add most to the loss of their step. */
  worst: list(worstDocumentsMax, object(documentLoss)),
};

export const bestEvaluation = { step: count, loss: number };

/** A restart and the proof that it was one: what changed, and that the function computed did not. */
const restart = {
  /** From 1. */
  restart: count,
  deltaNorm: number,
  /** Largest change of a logit on the probe, and what it was held to (mergeDrift.ts). */
  logitChangeMax: number,
  logitChangeTolerance: number,
  momentsZeroedRatio: number,
  ranks: list(1024, object(layerRank)),
  effectiveRank: number,
  modules: list(targetModules.length, object(restartModule)),
  /** Of the step before the restart and of the one after it. */
  learningRateBefore: number,
  learningRateAfter: number,
  /** On the probe, in the arithmetic of the run, just before and just after. */
  lossBefore: number,
  lossAfter: number,
  seconds: number,
};

/**
 * What a run reports, by kind: the one description of every event of a trainer. The types of the engine, the check of what
 * a trainer sends and the fields of event.proto hang on it. The journal stores events as they are, so they are plain data.
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
    /** There was no update, as loss or gradient was not finite or no target counted. */
    skipped: flag,
    /** The job asks to omit the step: nothing was computed. */
    omitted: orMissing(flag),
    residentBytes: count,
    /** Missing where the event stands for its own step alone. */
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
    /** One for each data set of the run. */
    datasets: orMissing(list(1024, object(datasetEvaluation))),
  },
  namedEvaluation,
  restart: {
    /** Step before which it happened. */
    step: count,
    ...restart,
  },
  /** How the adapter phase is computed; the choice is a function of the job and the instruction set alone. */
  plan: {
    /** Step that comes next. */
    step: count,
    /** Of the adapted modules. */
    graphs: list(targetModules.length, object(plannedGraph)),
    /** Operations of a step in the adapted layers, in equivalents of a product with the base; and with separate paths alone. */
    plannedOperations: number,
    separateOperations: number,
    /** Seconds of a step up to its gradients, as timed now; null where that was not done (planReport.ts). */
    plannedSeconds: orNull(number),
    separateSeconds: orNull(number),
    recomputation: oneOf(['none', 'blocks']),
    precision: oneOf(['float32', 'bfloat16']),
    basePrecision: oneOf(baseKinds),
    /** Of native products; empty elsewhere. */
    instructionSet: name,
  },
  checkpoint: {
    /** Step that a run resumes with. */
    step: count,
    /** Folder, complete and synced, inside the checkpoints folder. */
    path,
    sizeBytes: count,
    manifestSha256: sha256,
    seconds: number,
    /** The evaluation of the lowest loss so far, whose checkpoint is this or one before; only where the job keeps that. */
    best: orMissing(object(bestEvaluation)),
  },
  /** The run was changed: from this step on the updates up to this number hold. */
  update: {
    step: count,
    number: count,
    /** Of the learning rate, over the schedule. */
    learningRateFactor: number,
    /** Of all phases. */
    stepCount: count,
    /** Rate of the step as it would have been, and as it is. */
    learningRateBefore: number,
    learningRateAfter: number,
  },
  documents,
  /** The run ends before its last step. */
  stop: {
    /** Steps taken. */
    step: count,
    reason: oneOf(stopReasons),
    /** What came to the limit, in the unit of the setting; both are 0 for a request. */
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
