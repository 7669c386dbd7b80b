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
  /**
   * Number of the current or last execution, from 1; 0 before the first. Every write of a trainer carries it, and an old number is refused.
   */
  attempt: number;
  /** What the trainer was asked to do and has not done yet; survives a crash of the server. */
  stopRequest: StopRequest | null;
  /** Number of the last update of its run; 0 for none. */
  updateNumber: number;
  lastSequence: number;
  /** From 1; 0 if not queued, and in the jobs that an AppendListener gets. */
  queuePosition: number;
  /** Rises with every change of state or settings, not with progress; the etag. */
  version: number;
  createTimeMs: number;
  updateTimeMs: number;
  startTimeMs: number | null;
  endTimeMs: number | null;
  execution: Execution | null;
  /** The checkpoint of an ended job that this one began at. */
  origin: JobOrigin | null;
  /** Where it came from; null for a job that was created here. */
  imported: JobImport | null;
  /** Null if not deleted. */
  deleteTimeMs: number | null;
  /** When a deleted job is removed for good. */
  purgeTimeMs: number | null;
}

export interface JobImport {
  /** Its resource name there. */
  job: string;
  storeId: string;
  serverVersion: string;
  timeMs: number;
  /** SHA-256 of its record, by which a repeated import finds its job. */
  recordSha256: string;
  /** The checkpoint that it began at in the other store, which is not part of the import. */
  origin: { job: string; step: number } | null;
}

export interface JobOrigin {
  jobId: string;
  /** The step that a run resumes at. */
  step: number;
  /** Name of its folder in the job's checkpoints folder. */
  folder: string;
  manifestSha256: string;
}

export interface JobFailure {
  /** One of the job failures in errors.ts. */
  reason: string;
  message: string;
  /** The last lines that the trainer printed; absent if none. */
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
  /** Results of the last evaluation; absent before the first. */
  datasets?: DatasetEvaluation[];
  /** Last results of the named evaluations, by name; absent before the first. */
  evaluations?: Record<string, NamedEvaluation>;
  /** The evaluation with the lowest held-out loss, if its checkpoint is kept. */
  best?: { step: number; loss: number };
  /** Why the run ended before its last step; absent if it did not. `stepCount` is then the step that it ended at. */
  stop?: { step: number; reason: StopReason; value: number; limit: number };
}

/** A data set of a mixture. */
export const executionDataset = { dataset: name, sha256 };

/** What must be equal for a run to give the same bits again, apart from the number of threads. */
export const execution = {
  engineVersion: name,
  backend: name,
  instructionSet: name,
  threadCount: count,
  precision: oneOf(['float32', 'bfloat16', 'int8Base', 'nf4Base', 'fp8Base']),
  datasetSha256: sha256,
  basePrecision: oneOf(baseKinds),
  /** For the adapted modules. */
  graphs: list(targetModules.length, object(plannedGraph)),
  /** Null for new weights. */
  baseWeightsSha256: orNull(sha256),
  specSha256: sha256,
  nodeVersion: name,
  tfjsVersion: name,
  deviceModel: name,
  /** Empty unless it is a card. */
  cardUuid: name,
  /** Only for a card. */
  libraries: list(32, object({ name, version: name })),
  /** Number of processes that trained together. */
  replicas: count,
  /** Number type for exchanging gradients; only with several processes. */
  reductionType: orMissing(oneOf(reductionTypes)),
  /** When the processes synchronized their weights; only with several processes. */
  synchronization: orMissing(oneOf(synchronizations)),
  /** Only for a mixture. */
  datasets: orMissing(list(1024, object(executionDataset))),
};
export type Execution = shapes.ObjectOf<typeof execution>;

/** Every allowed change of state; anything else is refused. */
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

/** Whether the job has a trainer or one is being started for it. */
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
  /** First of the sequence numbers that it stands for: its own, except for the step event of a span. */
  firstSequence: number;
  timeMs: number;
  /** 0 outside an execution. */
  attempt: number;
  /** Whether it is the last event that the job will ever have. */
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
