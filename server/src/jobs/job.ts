import {
  baseKinds,
  plannedGraph,
  reductionTypes,
  shapes,
  synchronizations,
  targetModules,
  type DatasetEvaluation,
  type NamedEvaluation,
  type Phase,
  type RunSpec,
  type StopReason,
  type TrainingEvent,
} from '@relora/engine/plan';
import type { JobState, StopRequest } from '../store/schema.js';

export type { JobState, StopRequest };

const { count, list, name, object, oneOf, orMissing, orNull, sha256 } = shapes;

/** A job as the store keeps it. Times are milliseconds since 1970. */
export interface Job {
  id: string;
  displayName: string;
  labels: Record<string, string>;
  spec: RunSpec;
  state: JobState;
  stateReason: string;
  failure: JobFailure | null;
  progress: JobProgress;
  /** Number of the present or last execution, from 1, 0 before the first; every write of a trainer carries it and an old one is refused. */
  attempt: number;
  /** What the trainer was asked to do and has not done yet; kept over a crash of the server. */
  stopRequest: StopRequest | null;
  /** Number of the last change of its run; 0 for none. */
  updateNumber: number;
  lastSequence: number;
  /** From 1; 0 when not queued, and in what AppendListener gets. */
  queuePosition: number;
  /** Rises with every change of state or wish, not with progress; the etag. */
  version: number;
  createTimeMs: number;
  updateTimeMs: number;
  startTimeMs: number | null;
  endTimeMs: number | null;
  execution: Execution | null;
  /** The checkpoint of an ended job that this one begins at. */
  origin: JobOrigin | null;
  /** Where it was before it was imported; null for a job that was created here. */
  imported: JobImport | null;
  /** Null while it is not deleted. */
  deleteTimeMs: number | null;
  /** From when on a deleted job is gone for good. */
  purgeTimeMs: number | null;
}

export interface JobImport {
  /** Resource name there. */
  job: string;
  storeId: string;
  serverVersion: string;
  timeMs: number;
  /** SHA-256 of its record: an import that is repeated finds its job by it. */
  recordSha256: string;
  /** The checkpoint that it began at there, of which nothing came along. */
  origin: { job: string; step: number } | null;
}

export interface JobOrigin {
  jobId: string;
  /** Step that a run resumes with. */
  step: number;
  /** Name of its folder in the job's checkpoints folder. */
  folder: string;
  manifestSha256: string;
}

export interface JobFailure {
  /** From the catalog of job failures in errors.ts. */
  reason: string;
  message: string;
  /** What the trainer printed last; absent where it printed nothing. */
  lastLines?: string[];
}

export interface JobProgress {
  step: number;
  stepCount: number;
  phase: Phase | null;
  restartCount: number;
  trainedTokens: number;
  loss: number | null;
  evaluationLoss: number | null;
  tokensPerSecond: number | null;
  remainingSeconds: number | null;
  checkpointStep: number | null;
  /** Of the last evaluation; absent before the first. */
  datasets?: DatasetEvaluation[];
  /** Each named evaluation as it came out last, by name; absent before the first. */
  evaluations?: Record<string, NamedEvaluation>;
  /** The evaluation of the lowest held-out loss, whose checkpoint is kept; absent where it is not, or before there is one. */
  best?: { step: number; loss: number };
  /** Why the run ended before its last step; absent where it did not. `stepCount` is then its step. */
  stop?: { step: number; reason: StopReason; value: number; limit: number };
}

/** A data set of a mixture. */
export const executionDataset = { dataset: name, sha256 };

/** What has to be equal for a run to give the same bits again, but for the threads. */
export const execution = {
  engineVersion: name,
  backend: name,
  instructionSet: name,
  threadCount: count,
  precision: oneOf(['float32', 'bfloat16', 'int8Base', 'nf4Base', 'fp8Base']),
  datasetSha256: sha256,
  basePrecision: oneOf(baseKinds),
  /** Of the adapted modules. */
  graphs: list(targetModules.length, object(plannedGraph)),
  /** Null for new weights. */
  baseWeightsSha256: orNull(sha256),
  specSha256: sha256,
  nodeVersion: name,
  tfjsVersion: name,
  deviceModel: name,
  /** Empty where it is no card. */
  cardUuid: name,
  /** On a card alone. */
  libraries: list(32, object({ name, version: name })),
  /** Processes that trained together. */
  replicas: count,
  /** What their gradients were exchanged in; of several alone. */
  reductionType: orMissing(oneOf(reductionTypes)),
  /** When they agreed on their weights; of several alone. */
  synchronization: orMissing(oneOf(synchronizations)),
  /** Of a mixture alone. */
  datasets: orMissing(list(1024, object(executionDataset))),
};
export type Execution = shapes.ObjectOf<typeof execution>;

/** Every change of state that may happen; anything else is refused. */
export const transitions: Readonly<Record<JobState, readonly JobState[]>> = {
  queued: ['starting', 'paused', 'cancelled', 'failed'],
  starting: ['running', 'queued', 'paused', 'failed', 'cancelled'],
  running: ['succeeded', 'failed', 'cancelled', 'paused', 'queued'],
  paused: ['queued', 'cancelled'],
  succeeded: [],
  failed: [],
  cancelled: [],
};

export const terminalStates = (Object.keys(transitions) as JobState[]).filter(isTerminal);

/** Whether a trainer has the job, or is being started for it. */
export function hasTrainer(state: JobState): boolean {
  return state === 'starting' || state === 'running';
}

export function isTerminal(state: JobState): boolean {
  return transitions[state].length === 0;
}

/** One entry of a job's journal. */
export interface JobEvent {
  /** 1, 2, 3 … without gaps within the job. */
  sequence: number;
  /** Of the first event that it stands for: its own, but for the step event of a span. */
  firstSequence: number;
  timeMs: number;
  /** 0 outside of an execution. */
  attempt: number;
  /** The last event the job will ever have. */
  final: boolean;
  body: JobEventBody;
}

export type JobEventBody =
  | TrainingEvent
  | {
      kind: 'state';
      from: JobState | null;
      to: JobState;
      reason: string;
      failure: JobFailure | null;
      /** Why the run ended before its last step. */
      stopReason?: StopReason;
    }
  | { kind: 'artifact'; artifactId: string; sizeBytes: number };
