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

/** One execution of a job: all that the loop needs and changes. Owned by its process; disposed by whoever began it. */
export interface TrainingRun {
  readonly spec: RunSpec;
  /** What it computes on. Not disposed with it. */
  readonly device: Device;
  /** What it exchanges with the other members of the run. */
  readonly collective: Collective;
  /** The data set, of a mixture the first: the tokenizer of all. */
  readonly dataset: Dataset;
  /** All data sets. */
  readonly data: TrainingData;
  /** What it is scored on beside its held-out part. */
  readonly scored: readonly ScoredSet[];
  readonly batches: BatchFeed;
  /** How adapted layers are computed; bits depend on it, so a resumed run keeps what it began with. */
  readonly graphs: LayerGraphs;
  readonly schedule: SteeredSchedule;
  /** Changes of the run, and when its duties are due. */
  readonly steering: Steering;
  readonly model: Llama;
  readonly optimizer: Optimizer;
  readonly gradients: StepGradients;
  /** Where the losses of a step, an evaluation or a probe add up. */
  readonly result: ResultBuffer;
  /** SHA-256 of the weights that the run began with; null for new ones, or where an old checkpoint does not know. */
  readonly baseWeightsSha256: string | null;
  /** Of the weights that it began at, for exports. */
  readonly modelFiles: ModelFiles;
  /** Holds `checkpoints/` and `start/`. */
  readonly folder: string;
  /** Which attempt of the job this is, from 1; part of every checkpoint's name, so that attempts never share one. */
  readonly attempt: number;
  /** Changed by the loop alone, at one place per fact; a checkpoint holds it as it is. */
  readonly progress: RunProgress;
  /** Files of weights that are frozen now, which a checkpoint links instead of writing them again. */
  readonly frozen: FrozenFiles;
  /** Whether its members hold different weights: since a step that each took by itself. Such a run has no checkpoint. */
  isApart: boolean;
  /** Whether this object has reported how it computes the adapter phase. */
  isPlanReported: boolean;
  /** The last checkpoint that this object saved or was read from. */
  lastSaved: SavedCheckpoint | null;
  /** The progress that it holds. */
  savedProgress: RunProgress | null;
  /** What the journal should know before the first step, for example that a resumed run cannot be exact. */
  readonly warnings: { reason: string; message: string }[];
}

export interface RunProgress {
  /** The step that comes next; equal to the steps taken. */
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
  /** Number of the last update of the run that was applied; 0 for none. */
  updateNumber: number;
}

export interface FrozenFiles {
  /** Base weights as they have been since the last merge; null until a checkpoint wrote them. */
  base: StoredFile | null;
  /** Base weights at the start of the adapter phase; null before it. */
  start: StoredFile | null;
}

export interface StoredFile extends FileDigest {
  path: string;
}

/** Puts a run together from its parts; `beginRun` makes or reads them. */
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

/** Gives back all that a run holds on its device. */
export function disposeRun(run: TrainingRun): void {
  run.batches.close();
  run.optimizer.dispose();
  run.gradients.dispose();
  run.device.releaseResult(run.result);
  run.model.dispose();
}

/** Rows of a step whose losses are read; none where no documents are reported, or where they are too many. */
function documentRows({ batch, documentWindowStepCount }: RunSpec): number {
  const rows = batch.sequenceCount * batch.sequenceLength;
  return documentWindowStepCount > 0 && rows <= documentRowsMax ? rows : 0;
}
