/** Marks a file as ours: "ReLo" in ASCII. SQLite keeps it in the header of the file. */
export const applicationId = 0x52654c6f;

/**
 * The schema as the steps that lead to it; the number of steps done is the file's user_version. A step that was released
 * never changes: a new one is added.
 */
export const migrations: readonly string[] = [
  `
  create table jobs (
    id text primary key,
    display_name text not null,
    labels text not null,
    spec text not null,
    state text not null
      check (state in ('queued', 'starting', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
    state_reason text not null,
    failure text,
    progress text not null,
    attempt integer not null,
    attempts_without_progress integer not null,
    not_before_ms integer not null,
    stop_request text check (stop_request in ('pause', 'cancel')),
    last_sequence integer not null,
    version integer not null,
    priority integer not null,
    create_time_ms integer not null,
    update_time_ms integer not null,
    start_time_ms integer,
    end_time_ms integer,
    execution text
  ) strict;
  create index jobs_by_time on jobs (create_time_ms, id);
  create index jobs_queue on jobs (priority desc, create_time_ms, id) where state = 'queued';
  create index jobs_by_state on jobs (state);

  create table events (
    job_id text not null references jobs (id) on delete cascade,
    sequence integer not null,
    time_ms integer not null,
    attempt integer not null,
    final integer not null,
    body text not null,
    primary key (job_id, sequence)
  ) strict, without rowid;

  create table checkpoints (
    job_id text not null references jobs (id) on delete cascade,
    attempt integer not null,
    step integer not null,
    folder text not null,
    size_bytes integer not null,
    manifest_sha256 text not null,
    corrupt integer not null,
    create_time_ms integer not null,
    primary key (job_id, folder)
  ) strict;

  create table artifacts (
    job_id text not null references jobs (id) on delete cascade,
    id text not null,
    kind text not null,
    step integer not null,
    size_bytes integer not null,
    create_time_ms integer not null,
    primary key (job_id, id)
  ) strict;
  create table artifact_files (
    job_id text not null,
    artifact_id text not null,
    file_name text not null,
    size_bytes integer not null,
    sha256 text not null,
    primary key (job_id, artifact_id, file_name),
    foreign key (job_id, artifact_id) references artifacts (job_id, id) on delete cascade
  ) strict;

  create table datasets (
    id text primary key,
    display_name text not null,
    state text not null check (state in ('uploading', 'preparing', 'ready', 'failed')),
    failure text,
    spec text not null,
    prepared text,
    create_time_ms integer not null
  ) strict;
  create index datasets_by_time on datasets (create_time_ms, id);
  create table dataset_files (
    dataset_id text not null references datasets (id) on delete cascade,
    file_index integer not null,
    file_name text not null,
    server_path text,
    format text not null,
    split text,
    size_bytes integer not null,
    sha256 text,
    primary key (dataset_id, file_index)
  ) strict;

  create table requests (
    request_id text primary key,
    digest text not null,
    job_id text not null references jobs (id) on delete cascade,
    create_time_ms integer not null
  ) strict;
  create index requests_by_job on requests (job_id);
  `,
  'alter table jobs add column origin text',
  // Restarts are a thousandth of a journal: ListRestarts finds them without reading the rest.
  `create index restart_events on events (job_id, json_extract(body, '$.restart'), sequence)
     where json_extract(body, '$.kind') = 'restart'`,
  // An artifact may be one that is still to be made, from the checkpoint that it holds.
  `
  alter table artifacts add column state text not null default 'ready'
    check (state in ('pending', 'ready', 'failed'));
  alter table artifacts add column format text not null default 'huggingFace';
  alter table artifacts add column weight_type text not null default 'float32';
  alter table artifacts add column cast_error_max real not null default 0;
  alter table artifacts add column cycle integer;
  alter table artifacts add column failure text;
  alter table artifacts add column shard_bytes_max integer not null default 5000000000;
  alter table artifacts add column checkpoint_folder text;
  alter table artifacts add column request_id text;
  alter table artifacts add column request_digest text;
  create unique index artifacts_by_request on artifacts (request_id) where request_id is not null;
  create index artifacts_pending on artifacts (create_time_ms, id) where state = 'pending';
  `,
  `
  create table weights (
    id text primary key,
    display_name text not null,
    state text not null check (state in ('uploading', 'ready')),
    report text,
    create_time_ms integer not null
  ) strict;
  create index weights_by_time on weights (create_time_ms, id);
  create table weights_files (
    weights_id text not null references weights (id) on delete cascade,
    file_index integer not null,
    file_name text not null,
    size_bytes integer not null,
    sha256 text not null,
    primary key (weights_id, file_index)
  ) strict;
  `,
];
