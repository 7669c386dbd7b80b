import { join } from 'node:path';
import { alone, type Collective } from '../device/collective.js';
import type { Device, ResultBuffer } from '../device/device.js';
import type { Dataset } from '../data/dataset.js';
import type { BatchFeed } from '../data/batchFeed.js';
import { TrainingData } from '../data/trainingData.js';
import type { SavedCheckpoint } from './checkpoint.js';
import type { FileDigest } from '../io/durableFile.js';
import type { Llama } from '../model/llama.js';
import type { ModelFiles } from '../model/modelFiles.js';
import type { LayerGraphs } from '../plan/adapterGraphs.js';
import type { RunSpec } from '../plan/runSpec.js';
import type { SteeredSchedule } from '../plan/steeredSchedule.js';
import { documentRowsMax, emptyDocuments, type DocumentRecord } from './documentLosses.js';
import { emptyRecord, type HeldOutRecord } from './earlyStop.js';
import { Optimizer } from './optimizer.js';
import { methodsOf } from './optimizerMethods.js';
import { StepGradients } from './gradients.js';
import type { ScoredSet } from './scoredSets.js';
import { Steering, type SteeringOptions } from './steering.js';

/** One execution of a job: everything that the loop uses and changes. Owned by its process; the caller of `beginRun` disposes it. */
export interface TrainingRun {
  readonly spec: RunSpec;
  /** Device that computes the run. Not disposed with it. */
  readonly device: Device;
  /** Communication with the other members of the run. */
  readonly collective: Collective;
  /** The data set, or the first of a mixture: its tokenizer is shared by all. */
  readonly dataset: Dataset;
  /** All data sets. */
  readonly data: TrainingData;
  /** Sets for evaluation in addition to the held-out part. */
  readonly scored: readonly ScoredSet[];
  readonly batches: BatchFeed;
  /** How adapted layers are computed; bits depend on it, so a resumed run keeps the initial choice. */
  readonly graphs: LayerGraphs;
  readonly schedule: SteeredSchedule;
  /** Changes of the run, and when its duties are due. */
  readonly steering: Steering;
  readonly model: Llama;
  readonly optimizer: Optimizer;
  readonly gradients: StepGradients;
  /** Accumulates the losses of a step, an evaluation or a probe. */
  readonly result: ResultBuffer;
  /** SHA-256 of the weights that the run started from; null for new ones, or if an old checkpoint lacks it. */
  readonly baseWeightsSha256: string | null;
  /** Files of the model that it started from, for exports. */
  readonly modelFiles: ModelFiles;
  /** Contains `checkpoints/` and `start/`. */
  readonly folder: string;
  /** Number of this attempt of the job, from 1; part of every checkpoint's name, so that attempts never share one. */
  readonly attempt: number;
  /** Changed only by the loop, each fact at one place; stored unchanged in checkpoints. */
  readonly progress: RunProgress;
  /** Files of currently frozen weights; checkpoints link them instead of writing them again. */
  readonly frozen: FrozenFiles;
  /** Whether its members have different weights, after a step that each took independently. Such a run cannot be checkpointed. */
  isApart: boolean;
  /** Whether this object has already reported how it computes the adapter phase. */
  isPlanReported: boolean;
  /** The last checkpoint that this object saved or was restored from. */
  lastSaved: SavedCheckpoint | null;
  /** The progress in that checkpoint. */
  savedProgress: RunProgress | null;
  /** What the journal should record before the first step, for example that a resumed run cannot be exact. */
  readonly warnings: { reason: string; message: string }[];
}

export interface RunProgress {
  /** The next step; equals the number of steps taken. */
  nextStep: number;
  restartCount: number;
  trainedTokens: number;
  /** Steps that were not applied because a loss or gradient was not finite. */
  skippedStepCount: number;
  /** Steps taken before the last evaluation, sample and checkpoint, -1 for none: a resumed run repeats none of them. */
  evaluatedStep: number;
  sampledStep: number;
  savedStep: number;
  /** Steps taken before the last evaluation on `evaluation.finalTokenCount`, -1 for none. */
  wholeStep: number;
  /** Steps taken before the last evaluation of each name. */
  namedSteps: Readonly<Record<string, number>>;
  heldOut: HeldOutRecord;
  documents: DocumentRecord;
  /** The highest number of an update of the run that was applied; 0 for none. */
  updateNumber: number;
  /** Numbers below it of updates that are due later. */
  laterUpdates: readonly number[];
}

export interface FrozenFiles {
  /** Base weights since the last merge; null until a checkpoint has written them. */
  base: StoredFile | null;
  /** Base weights at the start of the adapter phase; null before it. */
  start: StoredFile | null;
}

export interface StoredFile extends FileDigest {
  path: string;
}

/** Assembles a run from its parts, which `beginRun` creates or reads. */
export function assembleRun(parts: {
  spec: RunSpec;
  device: Device;
  collective?: Collective;
  dataset: Dataset;
  mixture?: readonly Dataset[] | undefined;
  scored?: readonly ScoredSet[];
  model: Llama;
  runFolder: string;
  attempt: number;
  graphs: LayerGraphs;
  baseWeightsSha256: string | null;
  modelFiles?: ModelFiles;
  steering?: SteeringOptions;
}): TrainingRun {
  const {
    spec,
    device,
    dataset,
    model,
    runFolder,
    attempt,
    graphs,
    baseWeightsSha256,
    modelFiles = {},
  } = parts;
  const collective = parts.collective ?? alone;
  const steering = new Steering(spec, { ...parts.steering, processes: collective.size });
  const data = new TrainingData(spec, parts.mixture ?? [dataset]);
  return {
    spec,
    device,
    collective,
    dataset,
    data,
    scored: parts.scored ?? [],
    batches: data.feed(join(parts.runFolder, 'checked-shards.json')),
    schedule: steering.schedule,
    steering,
    model,
    graphs,
    baseWeightsSha256,
    modelFiles,
    optimizer: new Optimizer(device, spec.optimizer, methodsOf(spec, model.parameters)),
    gradients: new StepGradients(device),
    result: device.newResult(documentRows(spec)),
    folder: runFolder,
    attempt,
    progress: {
      nextStep: 0,
      restartCount: 0,
      trainedTokens: 0,
      skippedStepCount: 0,
      evaluatedStep: -1,
      sampledStep: -1,
      savedStep: -1,
      wholeStep: -1,
      namedSteps: {},
      heldOut: emptyRecord,
      documents: emptyDocuments,
      updateNumber: 0,
      laterUpdates: [],
    },
    frozen: { base: null, start: null },
    isApart: false,
    isPlanReported: false,
    lastSaved: null,
    savedProgress: null,
    warnings: [],
  };
}

export function checkpointsFolder(runFolder: string): string {
  return join(runFolder, 'checkpoints');
}

/** Frees everything that a run holds on its device. */
export function disposeRun(run: TrainingRun): void {
  run.batches.close();
  run.optimizer.dispose();
  run.gradients.dispose();
  run.device.releaseResult(run.result);
  run.model.dispose();
}

/** Rows of a step whose losses are read; 0 if no documents are reported, or if there are too many rows. */
function documentRows({ batch, documentWindowStepCount }: RunSpec): number {
  const rows = batch.sequenceCount * batch.sequenceLength;
  return documentWindowStepCount > 0 && rows <= documentRowsMax ? rows : 0;
}
