import type { ExportFormat, GgufType } from '@relora/engine/plan';

// What the columns of states may hold; the domain's files give them their meaning.
export type JobState = 'queued' | 'starting' | 'running' | 'paused' | 'succeeded' | 'failed' | 'cancelled';
export type StopRequest = 'pause' | 'cancel';
export type DatasetState = 'uploading' | 'preparing' | 'ready' | 'failed';
export type ArtifactState = 'pending' | 'ready' | 'failed';
export type ArtifactKind = 'mergedModel' | 'adapter';

/** Tables of the store as they are read. Times are milliseconds since 1970, JSON is text, booleans are 0 and 1. */
export interface Schema {
  jobs: JobRow;
  events: EventRow;
  checkpoints: CheckpointRow;
  artifacts: ArtifactRow;
  artifact_files: ArtifactFileRow;
  datasets: DatasetRow;
  dataset_files: DatasetFileRow;
  requests: RequestRow;
  weights: WeightsRow;
  weights_files: WeightsFileRow;
}

export interface JobRow {
  id: string;
  display_name: string;
  labels: string;
  spec: string;
  state: JobState;
  state_reason: string;
  failure: string | null;
  progress: string;
  attempt: number;
  /** Crashes since the last checkpoint. */
  attempts_without_progress: number;
  /** Not claimed before. */
  not_before_ms: number;
  stop_request: StopRequest | null;
  last_sequence: number;
  version: number;
  priority: number;
  create_time_ms: number;
  update_time_ms: number;
  start_time_ms: number | null;
  end_time_ms: number | null;
  execution: string | null;
  origin: string | null;
}

export interface EventRow {
  job_id: string;
  sequence: number;
  time_ms: number;
  attempt: number;
  final: number;
  body: string;
}

export interface CheckpointRow {
  job_id: string;
  attempt: number;
  step: number;
  /** Name of the folder in the job's checkpoints folder. */
  folder: string;
  size_bytes: number;
  manifest_sha256: string;
  /** 1 once the trainer found that its bytes are not those that were saved. */
  corrupt: number;
  create_time_ms: number;
}

export interface ArtifactRow {
  job_id: string;
  /** Also the name of its folder in the job's artifacts folder. */
  id: string;
  kind: ArtifactKind;
  step: number;
  size_bytes: number;
  create_time_ms: number;
  state: ArtifactState;
  format: ExportFormat;
  weight_type: GgufType;
  cast_error_max: number;
  /** Null without adapters. */
  cycle: number | null;
  failure: string | null;
  shard_bytes_max: number;
  /** Of an export: the checkpoint that it is made from, kept while it is pending; null until a running job has saved one for it. */
  checkpoint_folder: string | null;
  request_id: string | null;
  request_digest: string | null;
}

export interface ArtifactFileRow {
  job_id: string;
  artifact_id: string;
  file_name: string;
  size_bytes: number;
  sha256: string;
}

export interface DatasetRow {
  id: string;
  display_name: string;
  state: DatasetState;
  failure: string | null;
  spec: string;
  prepared: string | null;
  create_time_ms: number;
}

export interface DatasetFileRow {
  dataset_id: string;
  file_index: number;
  file_name: string;
  server_path: string | null;
  format: 'text' | 'jsonl' | 'parquet';
  split: 'train' | 'heldOut' | null;
  size_bytes: number;
  sha256: string | null;
}

export interface WeightsRow {
  id: string;
  display_name: string;
  state: 'uploading' | 'ready';
  /** JSON of what was found in them; null until ready. */
  report: string | null;
  create_time_ms: number;
}

export interface WeightsFileRow {
  weights_id: string;
  file_index: number;
  file_name: string;
  size_bytes: number;
  sha256: string;
}

/** What a request id was used for. */
export interface RequestRow {
  request_id: string;
  digest: string;
  job_id: string;
  create_time_ms: number;
}
