import type { Generated, Insertable, Selectable, Updateable } from 'kysely';
import type { ExportFormat, GgufType } from '@relora/engine/plan';

// What the columns of states may hold; the domain's files give them their meaning.
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

/** Whose a row is, by which name it goes there, and when it was deleted. */
interface Owned {
  /** Whose name space the row is in. */
  tenant: Generated<string>;
  /** What clients call it, unique within the tenant; the id is unique in the store, and the name of folders. */
  name: string;
  owner: Generated<string>;
  /** JSON of how long it is kept, in place of the settings; null for these. */
  retention: string | null;
  /** Null while it is not deleted. */
  delete_time_ms: number | null;
  /** From when on a deleted one is thrown away; until then the deletion can be taken back. */
  purge_time_ms: number | null;
}

/** Which server works on a row, and until when others leave it alone; see leases.ts. A job's fence is its attempt. */
interface Leased {
  lease_server: string | null;
  lease_until_ms: number | null;
}

interface Fenced extends Leased {
  /** Rises with every lease: a write that names an older one is refused. */
  epoch: Generated<number>;
}

/**
 * An attempt at a job, for whom and on what: rows outlive the job, whose name may be used again. `end_time_ms` is null while it runs;
 * that of one that a dead server left is the time of its last event.
 */
export interface AttemptRow {
  job_id: string;
  job_create_time_ms: number;
  attempt: number;
  tenant: string;
  /** As the job has or last had them. */
  labels: string;
  /** Name of what it was claimed for. */
  device: string;
  /** That train together, each in a slot of its own: device hours count each. */
  processes: Generated<number>;
  start_time_ms: number;
  end_time_ms: number | null;
}

/** What an attempt took in a month, by the time of its events; see usage.ts. */
export interface AttemptMonthRow {
  job_id: string;
  job_create_time_ms: number;
  attempt: number;
  /** 2026-11, of UTC. */
  month: string;
  /** Time in which it held its device. */
  device_ms: number;
  /** Of its steps. */
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

/** A label of a data set, for filters; the row of the data set has them all. */
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

/** A data set of a job's specification. */
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
  /** Crashes in exports, by format, as JSON. */
  export_crashes: Generated<string>;
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
  /** weights/… or jobs/…/artifacts/…, from the specification. */
  base_weights_name: string | null;
  /** From `origin`. */
  origin_job_id: string | null;
  /** Where it was before, as JSON; null for a job that was created here. */
  imported: Generated<string | null>;
  /** Number of the last change of its run; 0 for none. */
  update_number: Generated<number>;
  /** Of the last message of its attempt's trainer that is stored. */
  message_number: Generated<number>;
  /** That it may run on, as `,cuda,native,`; `,auto,` until a server resolves it. */
  devices: string;
  /** On what its first attempt ran, as `native avx512`, where every later one has to; null where the job accepts others. */
  pin: Generated<string | null>;
  /** Processes that train together, and the fewest with which it may resume. */
  replicas: Generated<number>;
  replicas_min: Generated<number>;
}

/** A label, for filters: the row of the job has them too, as JSON. */
export interface JobLabelRow {
  job_id: string;
  key: string;
  value: string;
}

/** What was changed of a run under way, from a step on. */
export interface JobUpdateRow {
  job_id: string;
  /** 1, 2, 3 … within the job. */
  number: number;
  /** -1 until the run has come to it. */
  step: number;
  body: string;
  create_time_ms: number;
}

/** What a call found of a job's weights. */
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
  /** Number of the restart that it is about; null for other events. */
  restart: number | null;
  /** Step that was taken, the last one of a span; null for other events. */
  step: number | null;
}

/** What some step events next to each other come to. */
export interface StepSpanRow {
  job_id: string;
  /** Sequence numbers that it stands for. */
  last_sequence: number;
  first_sequence: number;
  first_step: number;
  last_step: number;
  attempt: number;
  /** Of the last of them. */
  time_ms: number;
  /** 1 once the events themselves are gone. */
  folded: number;
  /** As stepSpans.ts writes it. */
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
  /** What was measured of it, as JSON; null where nothing was. */
  difference: string | null;
  /** Null without adapters. */
  cycle: number | null;
  failure: string | null;
  shard_bytes_max: number;
  /** Of an export: the checkpoint that it is made from, kept while it is pending; null until a running job has saved one for it. */
  checkpoint_folder: string | null;
}

export interface ArtifactFileRow {
  job_id: string;
  artifact_id: string;
  file_name: string;
  size_bytes: number;
  sha256: string;
}

/** CRC32C of each 8 MiB of a blob; written when they are first known. */
export interface BlobChunkRow {
  blob: string;
  chunk_index: number;
  crc32c: number;
}

/** A file of a folder that all servers of a store share, and the blob that it is; see sharedStage.ts. */
export interface BlobFileRow {
  /** jobs/…/checkpoints/…, datasets/…/prepared and others, as below the data folder. */
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
  /** Of the last bytes that arrived, or of the last change of state. */
  update_time_ms: number;
  /** 1 once its texts and tokens were thrown away, while jobs that ended still need its tokenizer. */
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

/** What a request id was used for. It outlives its subject, so that a late retry is not taken for a new wish. */
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

/** Blobs below this name are to be thrown away: their rows are gone, and a crash does not forget them. */
export interface PurgeRow {
  prefix: string;
}

/** Something that reads the journals of jobs to the end, such as a webhook; one server at a time does it. */
export interface JournalReaderTable extends Leased {
  id: string;
  /** Whose jobs; null for all. */
  tenant: string | null;
  state: Generated<'active'>;
  /** Jobs made from here on are read from their first event; of those before there is a position, or they are none of its concern. */
  since_ms: number;
  /** Rises with every claim: the fence of the lease. */
  epoch: Generated<number>;
}

/** How far a reader is in the journal of a job. */
export interface JournalPositionRow {
  reader: string;
  job_id: string;
  sequence: number;
  /** What the reader keeps beside it. */
  state: string;
}

/** Where events are sent. */
export interface WebhookTable {
  id: string;
  tenant: Generated<string>;
  name: string;
  owner: string;
  url: string;
  /** Key of the signatures, as its owner has it: signing needs the key itself, a hash would not do. */
  secret: string;
  /** JSON list. */
  event_kinds: string;
  /** JSON of the labels that a job must have. */
  labels: string;
  create_time_ms: number;
  last_success_time_ms: Generated<number | null>;
  last_failure: Generated<string>;
}

/** An event on its way to a receiver, or one that was given up. What was delivered has no row. */
export interface WebhookDeliveryRow {
  /** The webhook-id of its message. */
  id: string;
  webhook_id: string;
  job_id: string;
  sequence: number;
  kind: string;
  /** The message as it is sent in each attempt. */
  body: string;
  state: 'pending' | 'dead';
  attempts: number;
  next_time_ms: number;
  failure: string;
  create_time_ms: number;
}

/** Servers that work on this store. */
export interface ServerRow {
  id: string;
  address: string;
  version: string;
  /** JSON of what jobs can run on there, with its rates. */
  devices: string;
  memory_bytes: number;
  /** Jobs that it runs at once on its processors, and on its cards; 0 while it drains. */
  slots: number;
  card_slots: number;
  /** By which name mpirun reaches it; null where it takes no part in jobs over several servers. */
  mpi_host: string | null;
  start_time_ms: number;
  heartbeat_time_ms: number;
}

/** Slots that a server keeps for a job whose processes take those of several; gone with the attempt. */
export interface GangPlaceRow {
  job_id: string;
  server_id: string;
  slots: number;
  /** Null while they are on offer: the job waits for more of them. */
  attempt: number | null;
  /** On what all of them compute. */
  device: string | null;
  /** Its ranks are this one and those after it. */
  first_rank: number | null;
  /** Ranks of all servers. */
  size: number | null;
  /** What mpirun starts there for each rank, as JSON, once everything is there that they read; see gangPlaces.ts. */
  launch: string | null;
}

/** What jobs reached on a device; see reachedSpeedStore.ts. */
export interface ReachedSpeedRow {
  device: string;
  /** JSON of the measured speed that the ratios are held against. */
  basis: string;
  /** JSON of what the last steps took over what it foresees. */
  ratios: string;
}

/** What the store knows of itself; see storeInfo.ts. */
export interface StoreInfoRow {
  key: string;
  value: string;
}
