import type { BaseWeightsBefore, ExportCheck } from '@relora/engine';
import type { CardReading } from '@relora/engine/cuda';
import type { LocatedDocument, SoughtDocument } from '@relora/engine/data';
import type {
  ChoiceQuestion,
  DeviceChoice,
  ExportFormat,
  GgufType,
  RunSpec,
  RunUpdate,
} from '@relora/engine/plan';
import type { ExportResult } from '../artifacts/artifact.js';
import type { DatasetFormat, DatasetSpec, DatasetSplit, PreparedDataset } from '../datasets/dataset.js';
import type { DeviceDescription } from '../jobs/jobDevices.js';
import type { ModelEvaluation } from '../jobs/modelEvaluations.js';
import type { WeightsReport } from '../weights/weights.js';

/** What a child computes on, from the settings. */
export interface DeviceSettings {
  device: DeviceChoice;
  /** `auto` or one of the engine's names. */
  instructionSet: string;
  /** 0 for all processors of the process. */
  threads: number;
  card: CardSettings;
}

/** How a child opens an NVIDIA card. */
export interface CardSettings {
  /** The driver's name for it; null for the first. */
  uuid: string | null;
  /** Null: libraries are searched for. */
  libraryFolder: string | null;
  /** Folder of compiled kernels; only the tasks that look for devices write to it. */
  cacheFolder: string;
}

/** How exports are compared with the weights of their run, from the settings. */
export type ExportCheckSettings = Omit<ExportCheck, 'sequenceLength'>;

/** One execution of a job. */
export interface TrainOrder {
  jobId: string;
  attempt: number;
  spec: RunSpec;
  device: DeviceSettings;
  /** Where the base weights are now; null for new weights. */
  baseWeightsFolder: string | null;
  /** Their digests when they were registered and when an earlier attempt began. */
  baseWeightsBefore: BaseWeightsBefore;
  /** The job's folder, or for a further rank its own folder in there; nothing is written outside it. */
  jobFolder: string;
  /**
   * Which of the run's processes this is; null if it is the only one. They share the memory of the file `rankMemoryFile`, or communicate
   * through MPI. `mayConnect`: their cards may exchange sums directly, for which NCCL opens sockets.
   */
  member: { rank: number; size: number; by: 'memory' | 'mpi'; mayConnect: boolean } | null;
  /** Prepared folders of all data sets that it reads, in the order of `readDatasetNames`. */
  datasetFolders: readonly string[];
  /** Folders that base weights at a path must not lead out of; null for our own weights. */
  baseWeightsBeneath: readonly string[] | null;
  /** Acknowledged checkpoints, newest first. */
  checkpoints: { path: string; manifestSha256: string }[];
  /** The checkpoint of another job that this one begins at while it has none of its own, and the specification of that job. */
  origin: { path: string; manifestSha256: string; spec: RunSpec } | null;
  /** Formats of the final step that an earlier attempt has already sealed. */
  exportedFormats: ExportFormat[];
  exportCheck: ExportCheckSettings;
  /** Messages that the child may have sent without an acknowledgement. */
  unacknowledgedMax: number;
  /** Updates of the run; those with a step are repeated at that step. */
  updates: readonly RunUpdate[];
  /** When the first attempt began: time-based cadences count from there if no checkpoint says otherwise. */
  startTimeMs: number;
  /** Seconds for which earlier attempts used the device. */
  deviceSeconds: number;
  /** Step at which an earlier attempt ended the run early; null if none did. */
  stopStep: number | null;
}

export interface PrepareTask {
  kind: 'prepareDataset';
  files: {
    path: string;
    /** Folders that the path must not lead out of; null for uploads. */
    beneath: readonly string[] | null;
    fileName: string;
    format: DatasetFormat;
    split: DatasetSplit | null;
  }[];
  spec: DatasetSpec;
  /** Prepared folder of the data set that this one appends to; null for none. */
  baseFolder: string | null;
  /** Temporary folder to fill; the parent renames it. */
  outputFolder: string;
  /** Folder next to it with what the next attempt continues from. */
  progressFolder: string;
  /** Threads that encode text; fewer are used if the memory is too small. */
  threads: number;
  memoryBytesMax: number;
  /** Limit for the unpacked size of one packed file. */
  unpackedBytesMax: number;
  tokenizerCpuSeconds: number;
}

/** Where a model is. */
export interface ModelPlace {
  /** `artifact`: folder of a model in Hugging Face layout. `checkpoint`: folder of a checkpoint. */
  source: { kind: 'artifact' | 'checkpoint'; folder: string };
  /** Prepared folder of the data set that a checkpoint was trained on, for its tokenizer; an artifact contains its own. */
  datasetFolder: string | null;
}

/** Scores a model. */
export interface EvaluateTask extends ModelPlace {
  kind: 'evaluateModel';
  /** Data sets on whose held-out part it is evaluated. */
  datasets: { name: string; folder: string }[];
  sequenceLength: number;
  /** Tokens of each; 0 for all. */
  tokenCount: number;
  questions: ChoiceQuestion[];
  device: DeviceSettings;
}

export interface GenerateTask extends ModelPlace {
  kind: 'generate';
  prompt: string;
  tokenCountMax: number;
  /** 0 always takes the most likely token. */
  temperature: number;
  /** 0 for all. */
  topK: number;
  topP: number;
  seed: number;
  device: DeviceSettings;
}

export interface PreviewTask {
  kind: 'previewDataset';
  preparedFolder: string;
  split: DatasetSplit;
  tokenCount: number;
}

/** Finds documents of a run in its data sets. */
export interface LocateTask {
  kind: 'locateDocuments';
  /** Prepared folders, in the order of the specification. */
  datasetFolders: string[];
  spec: Pick<RunSpec, 'dataset' | 'mixture' | 'omittedDocuments' | 'seed' | 'batch' | 'streams'>;
  documents: SoughtDocument[];
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
  check: ExportCheck;
  device: DeviceSettings;
}

/** Fills the kernel cache for the cards of this machine. */
export interface CompileTask {
  kind: 'compileKernels';
  device: DeviceSettings;
}

/** Reads the cards' sensors until it is ended. */
export interface WatchCardsTask {
  kind: 'watchCards';
  device: DeviceSettings;
  intervalMs: number;
}

export type { CardReading };

export interface DescribeTask {
  kind: 'describeDevices';
  device: DeviceSettings;
  seeksNccl: boolean;
  /** Measures only cards, in a process that is confined like a trainer, to see whether that works. */
  isTrial: boolean;
}

/** Reads a prepared folder as a run would, verifying every hash. */
export interface CheckDatasetTask {
  kind: 'checkDataset';
  folder: string;
}

export interface CheckWeightsTask {
  kind: 'checkWeights';
  /** Folder in Hugging Face layout. */
  folder: string;
  /** Folders that its files must not lead out of; null for one of our own. */
  beneath: readonly string[] | null;
  tokenizerCpuSeconds: number;
  /** Whether to read every tensor, or only config and headers. */
  values: boolean;
}

export type Task =
  | PrepareTask
  | GenerateTask
  | EvaluateTask
  | PreviewTask
  | LocateTask
  | DescribeTask
  | CompileTask
  | WatchCardsTask
  | CheckDatasetTask
  | CheckWeightsTask
  | ExportTask;

/** Why a device is not available. */
export interface DeviceProblem {
  backend: string;
  reason: string;
  /** Includes what to do about it. */
  message: string;
}

export interface FoundDevices {
  /** Where the loaded native code comes from, for people. */
  native: string;
  /** Files of NVIDIA's libraries that were found by path. */
  libraries: string[];
  /** Version of NCCL, looked for if it may be used and there are several cards; null if there is none. */
  nccl: string | null;
  /** The one that `auto` takes comes first. */
  devices: DeviceDescription[];
  problems: DeviceProblem[];
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

/** The partial results that a task reports, and its final one. */
export interface TaskTypes {
  prepareDataset: { part: number; result: PreparedDataset };
  generate: { part: GeneratedPiece; result: null };
  evaluateModel: { part: never; result: ModelEvaluation };
  previewDataset: { part: never; result: PreviewedToken[] };
  locateDocuments: { part: never; result: LocatedDocument[] };
  describeDevices: { part: never; result: FoundDevices };
  compileKernels: { part: never; result: null };
  watchCards: { part: CardReading[]; result: null };
  exportWeights: { part: never; result: ExportResult };
  checkDataset: { part: never; result: PreparedDataset };
  checkWeights: { part: never; result: WeightsReport };
}

/** From the server to its child. */
export type ServerMessage =
  | { type: 'train'; order: TrainOrder }
  | { type: 'task'; task: Task }
  /** Stop within a micro-batch; `keep`: save a checkpoint first. */
  | { type: 'stop'; keep: boolean }
  /** Save a checkpoint after the current step and continue. */
  | { type: 'save'; ticket: number }
  /** Change the run at the start of its next step. */
  | { type: 'update'; update: RunUpdate }
  /** Everything up to this number is on the disk. */
  | { type: 'ack'; number: number };
