/** Marks a file as ours: "ReLo" in ASCII. SQLite keeps it in the header of the file. */
export const applicationId = 0x52654c6f;

export interface Migration {
  sqlite: string;
  /** In SQLite's dialect, too; postgres.ts replaces the types. */
  postgres: string;
}

const onBoth = (statements: string): Migration => ({ sqlite: statements, postgres: statements });

/** A step that only changes existing data of older schemas, which PostgreSQL never had. */
const onlySqlite = (statements: string): Migration => ({ sqlite: statements, postgres: '' });

/**
 * Rows get a tenant and, in addition to their id, a name that is unique within it; a lease with an epoch, for several servers on one store;
 * times of deletion and purge; and columns instead of JSON expressions, which differ between the two databases.
 */
const tenantsAndLeases = `
  create table store_info (
    key text primary key,
    value text not null
  ) strict;
  create table reached_speeds (
    device text primary key,
    basis text not null,
    ratios text not null
  ) strict;
  create table servers (
    id text primary key,
    address text not null,
    version text not null,
    devices text not null,
    memory_bytes integer not null,
    slots integer not null,
    card_slots integer not null default 0,
    mpi_host text,
    start_time_ms integer not null,
    heartbeat_time_ms integer not null
  ) strict;

  alter table jobs add column tenant text not null default 'default';
  alter table jobs add column name text not null default '';
  alter table jobs add column owner text not null default '';
  alter table jobs add column base_weights_name text;
  alter table jobs add column origin_job_id text;
  alter table jobs add column devices text not null default ',auto,';
  alter table jobs add column pin text;
  alter table jobs add column replicas integer not null default 1;
  alter table jobs add column replicas_min integer not null default 1;
  alter table jobs add column lease_server text;
  alter table jobs add column update_number integer not null default 0;
  alter table jobs add column export_crashes text not null default '{}';
  alter table jobs add column lease_until_ms integer;
  alter table jobs add column message_number integer not null default 0;
  alter table jobs add column retention text;
  alter table jobs add column imported text;
  alter table jobs add column delete_time_ms integer;
  alter table jobs add column purge_time_ms integer;
  update jobs set name = id;
  create unique index jobs_by_name on jobs (tenant, name);
  create index jobs_of_tenant on jobs (tenant, create_time_ms, id);
  create index jobs_by_weights on jobs (base_weights_name) where base_weights_name is not null;
  create index jobs_by_origin on jobs (origin_job_id) where origin_job_id is not null;
  create index jobs_to_purge on jobs (purge_time_ms) where purge_time_ms is not null;
  create index jobs_by_end on jobs (end_time_ms) where end_time_ms is not null;
  create table job_labels (
    job_id text not null references jobs (id) on delete cascade,
    key text not null,
    value text not null,
    primary key (job_id, key)
  ) strict;
  create index job_labels_by_value on job_labels (key, value, job_id);
  create table job_datasets (
    job_id text not null references jobs (id) on delete cascade,
    dataset_id text not null,
    primary key (job_id, dataset_id)
  ) strict;
  create index job_datasets_by_dataset on job_datasets (dataset_id, job_id);
  alter table artifacts add column difference text;
  create table model_evaluations (
    job_id text not null references jobs (id) on delete cascade,
    number integer not null,
    time_ms integer not null,
    body text not null,
    primary key (job_id, number)
  ) strict;
  create table job_updates (
    job_id text not null references jobs (id) on delete cascade,
    number integer not null,
    step integer not null,
    body text not null,
    create_time_ms integer not null,
    primary key (job_id, number)
  ) strict;

  alter table events add column restart integer;
  create index restarts on events (job_id, restart, sequence) where restart is not null;
  alter table events add column step integer;
  create index events_but_steps on events (job_id, sequence) where step is null;
  create table step_spans (
    job_id text not null references jobs (id) on delete cascade,
    last_sequence integer not null,
    first_sequence integer not null,
    first_step integer not null,
    last_step integer not null,
    attempt integer not null,
    time_ms integer not null,
    folded integer not null,
    body text not null,
    primary key (job_id, last_sequence)
  ) strict, without rowid;

  alter table artifacts add column epoch integer not null default 0;
  alter table artifacts add column lease_server text;
  alter table artifacts add column lease_until_ms integer;
  create index artifacts_at_checkpoint on artifacts (job_id, checkpoint_folder) where state = 'pending';

  alter table datasets add column tenant text not null default 'default';
  alter table datasets add column name text not null default '';
  alter table datasets add column owner text not null default '';
  alter table datasets add column labels text not null default '{}';
  alter table datasets add column epoch integer not null default 0;
  alter table datasets add column lease_server text;
  alter table datasets add column lease_until_ms integer;
  alter table datasets add column retention text;
  alter table datasets add column update_time_ms integer not null default 0;
  alter table datasets add column delete_time_ms integer;
  alter table datasets add column purge_time_ms integer;
  update datasets set name = id, update_time_ms = create_time_ms;
  create unique index datasets_by_name on datasets (tenant, name);
  create index datasets_of_tenant on datasets (tenant, create_time_ms, id);

  alter table weights add column tenant text not null default 'default';
  alter table weights add column name text not null default '';
  alter table weights add column owner text not null default '';
  alter table weights add column labels text not null default '{}';
  alter table weights add column retention text;
  alter table weights add column update_time_ms integer not null default 0;
  alter table weights add column delete_time_ms integer;
  alter table weights add column purge_time_ms integer;
  update weights set name = id, update_time_ms = create_time_ms;
  create unique index weights_by_name on weights (tenant, name);
  create index weights_of_tenant on weights (tenant, create_time_ms, id);
  create table dataset_labels (
    dataset_id text not null references datasets (id) on delete cascade,
    key text not null,
    value text not null,
    primary key (dataset_id, key)
  ) strict;
  create index dataset_labels_by_value on dataset_labels (key, value, dataset_id);
  create table weights_labels (
    weights_id text not null references weights (id) on delete cascade,
    key text not null,
    value text not null,
    primary key (weights_id, key)
  ) strict;
  create index weights_labels_by_value on weights_labels (key, value, weights_id);

  create table requests_by_tenant (
    tenant text not null default 'default',
    request_id text not null,
    digest text not null,
    subject text not null,
    create_time_ms integer not null,
    expire_time_ms integer,
    primary key (tenant, request_id)
  ) strict;
  insert into requests_by_tenant
    select 'default', request_id, digest, 'jobs/' || job_id, create_time_ms, null from requests;
  insert into requests_by_tenant
    select 'default', request_id, coalesce(request_digest, ''), 'jobs/' || job_id || '/artifacts/' || id,
      create_time_ms, null
    from artifacts where request_id is not null
    on conflict do nothing;
  drop table requests;
  alter table requests_by_tenant rename to requests;
  create index requests_by_subject on requests (subject);
  create index requests_to_expire on requests (expire_time_ms) where expire_time_ms is not null;
  drop index artifacts_by_request;
  alter table artifacts drop column request_id;
  alter table artifacts drop column request_digest;

  alter table datasets add column purged integer not null default 0;
  alter table datasets add column tokenizer_json text;
  create table purges (
    prefix text primary key
  ) strict;
  create table journal_readers (
    id text primary key,
    tenant text,
    state text not null default 'active',
    since_ms integer not null,
    epoch integer not null default 0,
    lease_server text,
    lease_until_ms integer
  ) strict;
  create table journal_positions (
    reader text not null references journal_readers (id) on delete cascade,
    job_id text not null references jobs (id) on delete cascade,
    sequence integer not null,
    state text not null,
    primary key (reader, job_id)
  ) strict;
  create table webhooks (
    id text primary key,
    tenant text not null default 'default',
    name text not null,
    owner text not null,
    url text not null,
    secret text not null,
    event_kinds text not null,
    labels text not null,
    create_time_ms integer not null,
    last_success_time_ms integer,
    last_failure text not null default ''
  ) strict;
  create unique index webhooks_by_name on webhooks (tenant, name);
  create table webhook_deliveries (
    id text primary key,
    webhook_id text not null references webhooks (id) on delete cascade,
    job_id text not null,
    sequence integer not null,
    kind text not null,
    body text not null,
    state text not null check (state in ('pending', 'dead')),
    attempts integer not null,
    next_time_ms integer not null,
    failure text not null,
    create_time_ms integer not null
  ) strict;
  create index webhook_deliveries_due on webhook_deliveries (webhook_id, state, next_time_ms);
  create table audit (
    id text primary key,
    time_ms integer not null,
    caller text not null,
    tenant text not null,
    peer text not null,
    method text not null,
    resource text not null,
    request_id text not null,
    result text not null
  ) strict;
  create index audit_by_time on audit (time_ms);
  create table gang_places (
    job_id text not null references jobs (id) on delete cascade,
    server_id text not null,
    slots integer not null,
    attempt integer,
    device text,
    first_rank integer,
    size integer,
    launch text,
    primary key (job_id, server_id)
  ) strict;
  create index gang_places_by_server on gang_places (server_id);
  create table attempts (
    job_id text not null,
    job_create_time_ms integer not null,
    attempt integer not null,
    tenant text not null,
    labels text not null,
    device text not null,
    processes integer not null default 1,
    start_time_ms integer not null,
    end_time_ms integer,
    primary key (job_id, job_create_time_ms, attempt)
  ) strict;
  create index attempts_by_tenant on attempts (tenant, end_time_ms);
  create table attempt_months (
    job_id text not null,
    job_create_time_ms integer not null,
    attempt integer not null,
    month text not null,
    device_ms integer not null,
    step_seconds real not null,
    tokens integer not null,
    primary key (job_id, job_create_time_ms, attempt, month),
    foreign key (job_id, job_create_time_ms, attempt) references attempts on delete cascade
  ) strict;
  create table blob_chunks (
    blob text not null,
    chunk_index integer not null,
    crc32c integer not null,
    primary key (blob, chunk_index)
  ) strict;
  create table blob_files (
    folder text not null,
    file_name text not null,
    blob text not null,
    size_bytes integer not null,
    sha256 text not null,
    primary key (folder, file_name)
  ) strict;
  create index blob_files_by_blob on blob_files (blob);
`;

/**
 * The steps that lead to the present schema; the number of steps done is the schema's version (user_version of the file, the table
 * schema_version in PostgreSQL). A released step never changes: a new one is added.
 */
export const migrations: readonly Migration[] = [
  onBoth(`
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
  `),
  onBoth('alter table jobs add column origin text'),
  // Restarts are a thousandth of a journal: ListRestarts finds them without reading the rest.
  onlySqlite(`create index restart_events on events (job_id, json_extract(body, '$.restart'), sequence)
     where json_extract(body, '$.kind') = 'restart'`),
  // An artifact may also be one that is still to be made, from a checkpoint that is kept for it.
  onBoth(`
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
  `),
  onBoth(`
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
  `),
  // From here on, the statements for both databases come first, then those that only change old data.
  {
    sqlite: `${tenantsAndLeases}
  update events set step = json_extract(body, '$.step') where json_extract(body, '$.kind') = 'step';
  update events set restart = json_extract(body, '$.restart') where json_extract(body, '$.kind') = 'restart';
  drop index restart_events;
  insert into job_datasets
    select id, substr(json_extract(spec, '$.dataset'), length('datasets/') + 1) from jobs
    where json_extract(spec, '$.dataset') is not null;
  update jobs set devices = ',' || json_extract(spec, '$.device') || ',',
    base_weights_name = json_extract(spec, '$.baseWeightsName'), origin_job_id = json_extract(origin, '$.jobId');
  update datasets set tokenizer_json = json_extract(spec, '$.tokenizer.tokenizerJson'),
    spec = json_remove(spec, '$.tokenizer.tokenizerJson')
    where json_extract(spec, '$.tokenizer.kind') = 'huggingFace';
  insert into attempts
    select job_id, create_time_ms, events.attempt, 'default', labels, json_extract(spec, '$.device'), 1, min(time_ms),
      max(case when json_extract(body, '$.to') not in ('starting', 'running') then time_ms end)
    from events join jobs on jobs.id = job_id
    where events.attempt > 0 and json_extract(body, '$.kind') = 'state' group by job_id, events.attempt;
  insert into attempt_months
    select events.job_id, job_create_time_ms, events.attempt, strftime('%Y-%m', time_ms / 1000, 'unixepoch') as month,
      max(time_ms) - min(time_ms), coalesce(sum(json_extract(body, '$.stepSeconds')), 0),
      coalesce(sum(case when json_extract(body, '$.kind') = 'step' then json_extract(body, '$.tokenCount') end), 0)
    from events join attempts on attempts.job_id = events.job_id and attempts.attempt = events.attempt
    group by events.job_id, events.attempt, month;
  insert into job_labels select jobs.id, label.key, label.value from jobs, json_each(jobs.labels) as label;
`,
    postgres: tenantsAndLeases,
  },
];
