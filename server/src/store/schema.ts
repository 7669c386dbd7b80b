import type { Generated, Insertable, Selectable, Updateable } from 'kysely';
import type { ExportFormat, GgufType } from '@relora/engine/plan';

// Values of the state columns; the files of the domain define their meaning.
export type JobState = 'queued' | 'starting' | 'running' | 'paused' | 'succeeded' | 'failed' | 'cancelled';
export type StopRequest = 'pause' | 'cancel';
export type DatasetState = 'uploading' | 'preparing' | 'ready' | 'failed';
export type ArtifactState = 'pending' | 'ready' | 'failed';
export type ArtifactKind = 'mergedModel' | 'adapter';

/** Tables of the store as they are read. Times are milliseconds since 1970, JSON is text, booleans are 0 and 1. */
export interface Schema {
  jobs: JobTable;
  job_labels: JobLabelRow;
  job_datasets: JobDatasetRow;
  dataset_labels: DatasetLabelRow;
  weights_labels: WeightsLabelRow;
  job_updates: JobUpdateRow;
  model_evaluations: ModelEvaluationRow;
  events: EventRow;
  step_spans: StepSpanRow;
  checkpoints: CheckpointRow;
  artifacts: ArtifactTable;
  artifact_files: ArtifactFileRow;
  attempts: AttemptRow;
  attempt_months: AttemptMonthRow;
  audit: AuditRow;
  blob_chunks: BlobChunkRow;
  blob_files: BlobFileRow;
  datasets: DatasetTable;
  dataset_files: DatasetFileRow;
  requests: RequestTable;
  weights: WeightsTable;
  weights_files: WeightsFileRow;
  purges: PurgeRow;
  journal_readers: JournalReaderTable;
  journal_positions: JournalPositionRow;
  webhooks: WebhookTable;
  webhook_deliveries: WebhookDeliveryRow;
  servers: ServerRow;
  gang_places: GangPlaceRow;
  store_info: StoreInfoRow;
  reached_speeds: ReachedSpeedRow;
}

export type JobRow = Selectable<JobTable>;
export type NewJobRow = Insertable<JobTable>;
export type JobRowChange = Updateable<JobTable>;
export type ArtifactRow = Selectable<ArtifactTable>;
export type DatasetRow = Selectable<DatasetTable>;
export type WeightsRow = Selectable<WeightsTable>;
export type WebhookRow = Selectable<WebhookTable>;

/** Columns of rows that belong to a tenant and can be deleted. */
interface Owned {
  /** The tenant whose namespace the row is in. */
  tenant: Generated<string>;
  /** Its name for clients, unique within the tenant; the id is unique in the store, and the name of its folder. */
  name: string;
  owner: Generated<string>;
  /** JSON of its retention rule, which overrides the settings; null for those. */
  retention: string | null;
  /** Null if not deleted. */
  delete_time_ms: number | null;
  /** When a deleted row is removed for good; until then the deletion can be undone. */
  purge_time_ms: number | null;
}

/** Which server works on a row, and until when others must not take it; see leases.ts. The fence of a job is its attempt. */
interface Leased {
  lease_server: string | null;
  lease_until_ms: number | null;
}

interface Fenced extends Leased {
  /** Rises with every lease: a write with an older one is refused. */
  epoch: Generated<number>;
}

/**
 * An attempt at a job, with its owner and device. These rows outlive the job, whose name may be reused. `end_time_ms` is null while it
 * runs; if its server died, it is the time of its last event.
 */
export interface AttemptRow {
  job_id: string;
  job_create_time_ms: number;
  attempt: number;
  tenant: string;
  /** Labels of the job, or its last ones. */
  labels: string;
  /** The device that it was claimed for. */
  device: string;
  /** Processes that train together, each in a slot of its own: each counts in device hours. */
  processes: Generated<number>;
  start_time_ms: number;
  end_time_ms: number | null;
}

/** What an attempt used in a month, by the time of its events; see usage.ts. */
export interface AttemptMonthRow {
  job_id: string;
  job_create_time_ms: number;
  attempt: number;
  /** For example 2026-11, in UTC. */
  month: string;
  /** Time for which it held its device. */
  device_ms: number;
  /** Total of its steps. */
  step_seconds: number;
  tokens: number;
}

/** Who changed what; ids sort by time. */
export interface AuditRow {
  id: string;
  time_ms: number;
  caller: string;
  tenant: string;
  peer: string;
  method: string;
  resource: string;
  request_id: string;
  result: string;
}

/** A label of a data set, for filters; the row of the data set has all of them, too. */
export interface DatasetLabelRow {
  dataset_id: string;
  key: string;
  value: string;
}

export interface WeightsLabelRow {
  weights_id: string;
  key: string;
  value: string;
}

/** A data set in a job's specification. */
export interface JobDatasetRow {
  job_id: string;
  dataset_id: string;
}

export interface JobTable extends Owned, Leased {
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
  /** Crashes in exports by format, as JSON. */
  export_crashes: Generated<string>;
  /** The job is not claimed before this time. */
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
  /** weights/… or jobs/…/artifacts/…, from the specification. */
  base_weights_name: string | null;
  /** From `origin`. */
  origin_job_id: string | null;
  /** Where it came from, as JSON; null for a job that was created here. */
  imported: Generated<string | null>;
  /** Number of the last update of its run; 0 for none. */
  update_number: Generated<number>;
  /** Number of the last stored message of the current trainer. */
  message_number: Generated<number>;
  /** Devices that it may run on, as `,cuda,native,`; `,auto,` until a server resolves it. */
  devices: string;
  /** What its first attempt ran on, as `native avx512`; later attempts must use the same. Null if the job accepts others. */
  pin: Generated<string | null>;
  /** Processes that train together, and the minimum with which it may resume. */
  replicas: Generated<number>;
  replicas_min: Generated<number>;
}

/** A label, for filters; the row of the job has all of them, too, as JSON. */
export interface JobLabelRow {
  job_id: string;
  key: string;
  value: string;
}

/** A change of a run in progress, from a step on. */
export interface JobUpdateRow {
  job_id: string;
  /** 1, 2, 3 … within the job. */
  number: number;
  /** -1 until the run has reached it. */
  step: number;
  body: string;
  create_time_ms: number;
}

/** The result of an EvaluateModel call for weights of a job. */
export interface ModelEvaluationRow {
  job_id: string;
  /** Rises within the job. */
  number: number;
  time_ms: number;
  body: string;
}

export interface EventRow {
  job_id: string;
  sequence: number;
  time_ms: number;
  attempt: number;
  final: number;
  body: string;
  /** Number of the restart that the event reports; null for other events. */
  restart: number | null;
  /** Step that the event reports, the last one of a span; null for other events. */
  step: number | null;
}

/** The summary of consecutive step events. */
export interface StepSpanRow {
  job_id: string;
  /** Sequence numbers that it stands for. */
  last_sequence: number;
  first_sequence: number;
  first_step: number;
  last_step: number;
  attempt: number;
  /** Time of the last of these events. */
  time_ms: number;
  /** 1 once the events themselves were removed. */
  folded: number;
  /** In the format of stepSpans.ts. */
  body: string;
}

export interface CheckpointRow {
  job_id: string;
  attempt: number;
  step: number;
  /** Name of its folder in the job's checkpoints folder. */
  folder: string;
  size_bytes: number;
  manifest_sha256: string;
  /** 1 once the trainer found that its bytes are not those that were saved. */
  corrupt: number;
  create_time_ms: number;
}

export interface ArtifactTable extends Fenced {
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
  /** The measured difference from the run's weights, as JSON; null if not measured. */
  difference: string | null;
  /** Null without adapters. */
  cycle: number | null;
  failure: string | null;
  shard_bytes_max: number;
  /**
   * For an export: the checkpoint that it is made from, kept while the export is pending; null until a running job has saved one for it.
   */
  checkpoint_folder: string | null;
}

export interface ArtifactFileRow {
  job_id: string;
  artifact_id: string;
  file_name: string;
  size_bytes: number;
  sha256: string;
}

/** CRC32C of each 8 MiB of a blob, stored when they are first computed. */
export interface BlobChunkRow {
  blob: string;
  chunk_index: number;
  crc32c: number;
}

/** A file in a folder that all servers of a store share, and its blob; see sharedStage.ts. */
export interface BlobFileRow {
  /** Relative to the data folder: jobs/…/checkpoints/…, datasets/…/prepared and others. */
  folder: string;
  file_name: string;
  blob: string;
  size_bytes: number;
  sha256: string;
}

export interface DatasetTable extends Owned, Fenced {
  id: string;
  display_name: string;
  labels: Generated<string>;
  /** Time of the last received bytes or the last change of state. */
  update_time_ms: number;
  /** 1 once its texts and tokens were deleted, while ended jobs still need its tokenizer. */
  purged: Generated<number>;
  state: DatasetState;
  failure: string | null;
  spec: string;
  /** Content of the tokenizer.json that it is prepared with; null for other tokenizers. */
  tokenizer_json: string | null;
  prepared: string | null;
  create_time_ms: number;
}

export interface DatasetFileRow {
  dataset_id: string;
  file_index: number;
  file_name: string;
  server_path: string | null;
  format: 'auto' | 'text' | 'jsonl' | 'json' | 'csv' | 'parquet';
  split: 'train' | 'heldOut' | null;
  size_bytes: number;
  sha256: string | null;
}

export interface WeightsTable extends Owned {
  id: string;
  display_name: string;
  labels: Generated<string>;
  update_time_ms: number;
  state: 'uploading' | 'ready';
  /** JSON of what was found in the weights; null until ready. */
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

/** What a request id was used for. The row outlives its subject, so that a late retry is not taken for a new request. */
export interface RequestTable {
  tenant: Generated<string>;
  request_id: string;
  digest: string;
  /** jobs/… or jobs/…/artifacts/…, with ids. */
  subject: string;
  create_time_ms: number;
  /** Null while the subject exists. */
  expire_time_ms: number | null;
}

/** Blobs below this name are to be deleted: their rows are gone, and this row survives a crash. */
export interface PurgeRow {
  prefix: string;
}

/** A reader of the journals of jobs, such as a webhook; one server at a time reads for it. */
export interface JournalReaderTable extends Leased {
  id: string;
  /** The tenant whose jobs are read; null for all. */
  tenant: string | null;
  state: Generated<'active'>;
  /** Jobs created after this are read from their first event; earlier ones have a position, or are ignored. */
  since_ms: number;
  /** Rises with every claim: the fence of the lease. */
  epoch: Generated<number>;
}

/** How far a reader has come in the journal of a job. */
export interface JournalPositionRow {
  reader: string;
  job_id: string;
  sequence: number;
  /** What the reader keeps in addition to the position. */
  state: string;
}

/** Receivers of events. */
export interface WebhookTable {
  id: string;
  tenant: Generated<string>;
  name: string;
  owner: string;
  url: string;
  /** Key of the signatures, in plain text: signing needs the key itself, a hash is not enough. */
  secret: string;
  /** JSON list. */
  event_kinds: string;
  /** JSON of the labels that a job must have. */
  labels: string;
  create_time_ms: number;
  last_success_time_ms: Generated<number | null>;
  last_failure: Generated<string>;
}

/** An event that is to be sent to a receiver, or that was given up. Delivered ones have no row. */
export interface WebhookDeliveryRow {
  /** The webhook-id of its message. */
  id: string;
  webhook_id: string;
  job_id: string;
  sequence: number;
  kind: string;
  /** The message, the same in each attempt. */
  body: string;
  state: 'pending' | 'dead';
  attempts: number;
  next_time_ms: number;
  failure: string;
  create_time_ms: number;
}

/** Servers that use this store. */
export interface ServerRow {
  id: string;
  address: string;
  version: string;
  /** JSON of what jobs can run on there, with measured speeds. */
  devices: string;
  memory_bytes: number;
  /** Jobs that it can run at the same time, on its processors and on its cards; 0 while it drains. */
  slots: number;
  card_slots: number;
  /** Name by which mpirun reaches it; null if it takes no part in jobs on several servers. */
  mpi_host: string | null;
  start_time_ms: number;
  heartbeat_time_ms: number;
}

/** Slots that a server reserves for a job whose processes run on several servers; deleted with the attempt. */
export interface GangPlaceRow {
  job_id: string;
  server_id: string;
  slots: number;
  /** Null while they are only offered: the job waits for more. */
  attempt: number | null;
  /** The device that all of them compute on. */
  device: string | null;
  /** The first of its consecutive ranks. */
  first_rank: number | null;
  /** Ranks on all servers. */
  size: number | null;
  /** What mpirun starts there for each rank, as JSON, once everything that the ranks read is there; see gangPlaces.ts. */
  launch: string | null;
}

/** Speed that jobs reached on a device; see reachedSpeedStore.ts. */
export interface ReachedSpeedRow {
  device: string;
  /** JSON of the measured speed that the ratios refer to. */
  basis: string;
  /** JSON of the last steps' durations, relative to the estimates from `basis`. */
  ratios: string;
}

/** Information of the store about itself; see storeInfo.ts. */
export interface StoreInfoRow {
  key: string;
  value: string;
}
