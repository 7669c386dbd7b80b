import type { TrainingEvent } from '@relora/engine';
import type { DeviceChoice, ExportFormat, GgufType, RunSpec } from '@relora/engine/plan';
import type { ExportResult, PlannedArtifact, SealedArtifact } from '../artifacts/artifact.js';
import type { DatasetFormat, DatasetSpec, DatasetSplit, PreparedDataset } from '../datasets/dataset.js';
import type { Execution } from '../jobs/job.js';
import type { WeightsReport } from '../weights/weights.js';

/** What a child computes on; from the settings. */
export interface DeviceSettings {
  device: DeviceChoice;
  /** `auto` or a name of the engine. */
  instructionSet: string;
  /** 0 for all processors of the process. */
  threads: number;
}

/** One execution of a job. */
export interface TrainOrder {
  jobId: string;
  attempt: number;
  spec: RunSpec;
  device: DeviceSettings;
  /** The job's folder; nothing is written outside of it. */
  jobFolder: string;
  /** Prepared folder of the data set. */
  datasetFolder: string;
  /** Acknowledged checkpoints, newest first. */
  checkpoints: { path: string; manifestSha256: string }[];
  /** The checkpoint of another job that this one begins at while it has none of its own, and what that was trained with. */
  origin: { path: string; manifestSha256: string; spec: RunSpec } | null;
  /** What an earlier attempt sealed of the last step already. */
  exportedFormats: ExportFormat[];
  /** Messages the child may have sent without an acknowledgement. */
  unacknowledgedMax: number;
}

export interface PrepareTask {
  kind: 'prepareDataset';
  files: { path: string; fileName: string; format: DatasetFormat; split: DatasetSplit | null }[];
  spec: DatasetSpec;
  /** Temporary folder to fill; the parent renames it. */
  outputFolder: string;
}

export interface GenerateTask {
  kind: 'generate';
  /** `artifact`: folder of a model in Hugging Face layout. `checkpoint`: folder of a checkpoint. */
  source: { kind: 'artifact' | 'checkpoint'; folder: string };
  prompt: string;
  tokenCountMax: number;
  /** 0 takes the likeliest token always. */
  temperature: number;
  /** 0 for all. */
  topK: number;
  topP: number;
  seed: number;
  /** Prepared folder of the data set that a checkpoint was trained on, for its tokenizer; an artifact has its own. */
  datasetFolder: string | null;
  device: DeviceSettings;
}

export interface PreviewTask {
  kind: 'previewDataset';
  preparedFolder: string;
  split: DatasetSplit;
  tokenCount: number;
}

export interface ExportTask {
  kind: 'exportWeights';
  job: string;
  checkpoint: { path: string; manifestSha256: string };
  /** Prepared folder of the job's data set, for its tokenizer. */
  datasetFolder: string;
  /** New folder to fill; the parent renames it. */
  outputFolder: string;
  format: ExportFormat;
  weightType: GgufType;
  shardBytesMax: number;
  device: DeviceSettings;
}

export interface DescribeTask {
  kind: 'describeDevices';
  device: DeviceSettings;
}

export interface CheckWeightsTask {
  kind: 'checkWeights';
  /** In Hugging Face layout. */
  folder: string;
  /** Whether every tensor is read, or only config and headers. */
  values: boolean;
}

export type Task = PrepareTask | GenerateTask | PreviewTask | DescribeTask | CheckWeightsTask | ExportTask;

/** Something jobs can run on, as measured in a child. */
export interface DeviceDescription {
  backend: string;
  isDefault: boolean;
  model: string;
  instructionSet: string;
  threadCount: number;
  memoryBytes: number;
  /** Floating point operations per second; 0 where it cannot be measured. */
  float32Flops: number;
  bfloat16Flops: number;
  int8Flops: number;
  /** Bytes a second that go to and from memory; 0 where it cannot be measured. */
  memoryBytesPerSecond: number;
  autoPrecision: 'float32' | 'bfloat16';
}

export interface GeneratedPiece {
  /** Whole characters. */
  text: string;
  /** Tokens generated so far. */
  tokenCount: number;
  /** Set in the last piece. */
  finishReason: 'endOfText' | 'tokenCount' | null;
}

export interface PreviewedToken {
  id: number;
  /** Bytes that are not whole characters are written as \xNN. */
  text: string;
  /** Whether it counts in the loss. */
  trained: boolean;
}

/** What a task tells on its way, and what it ends with. */
export interface TaskTypes {
  prepareDataset: { part: number; result: PreparedDataset };
  generate: { part: GeneratedPiece; result: null };
  previewDataset: { part: never; result: PreviewedToken[] };
  describeDevices: { part: never; result: DeviceDescription[] };
  exportWeights: { part: never; result: ExportResult };
  checkWeights: { part: never; result: WeightsReport };
}

/** From the server to its child. */
export type ServerMessage =
  | { type: 'train'; order: TrainOrder }
  | { type: 'task'; task: Task }
  /** Stop within a micro-batch; `keep`: save a checkpoint first. */
  | { type: 'stop'; keep: boolean }
  /** Save a checkpoint after the present step and go on. */
  | { type: 'save'; ticket: number }
  /** Everything up to this number is on the disk. */
  | { type: 'ack'; number: number };

/**
 * From a trainer to the server. Numbers count 1, 2, 3 …; the trainer waits while too many are not acknowledged, and ends
 * once its last message is.
 */
export type TrainerMessage =
  | { type: 'started'; number: number; execution: Execution; step: number }
  | { type: 'event'; number: number; timeMs: number; body: TrainingEvent }
  | { type: 'checkpointCorrupt'; number: number; path: string; problem: string }
  /** The orders to save up to this ticket are done; the checkpoint was told before, or the problem says why there is none. */
  | { type: 'saved'; number: number; ticket: number; problem: string | null }
  | { type: 'artifact'; number: number; artifact: SealedArtifact }
  /** The training is done all the same. */
  | {
      type: 'exportFailed';
      number: number;
      artifact: PlannedArtifact;
      failure: { reason: string; message: string };
    }
  | { type: 'finished'; number: number; outcome: 'succeeded' | 'stopped' }
  | { type: 'failed'; number: number; reason: string; message: string };

/** From a task to the server. */
export type TaskMessage<K extends keyof TaskTypes = keyof TaskTypes> =
  | { type: 'part'; value: TaskTypes[K]['part'] }
  | { type: 'result'; value: TaskTypes[K]['result'] }
  | { type: 'failed'; reason: string; message: string };
