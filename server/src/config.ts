import { isIP } from 'node:net';
import { isAbsolute, resolve } from 'node:path';
import { roles, type Role } from './roles.js';
import { nearest } from './nearest.js';
import { parseDatabaseUrl, parseStoreUrl, storeUrlRange } from './store/storeUrl.js';

/** One setting: where it is read from, what it may be and why it exists. docs/configuration.md is checked against these. */
export interface Setting<T> {
  variable: `RELORA_${string}`;
  /** As it would be written in the environment. */
  default: string;
  /** What is accepted, for people. */
  range: string;
  reason: string;
  /** Throws SettingProblem with what was expected. */
  parse(text: string): T;
}

class SettingProblem extends Error {}

/** Every setting of the server. Nothing else is read from the environment. */
export const settings = {
  grpcAddress: address(
    'RELORA_GRPC_ADDRESS',
    '127.0.0.1:50051',
    'Where gRPC is served; port 0 takes a free one.',
  ),
  healthAddress: {
    ...address(
      'RELORA_HEALTH_ADDRESS',
      'none',
      'Where health alone is served over gRPC, in plain text and without a login, for probes that speak no TLS; none for nowhere.',
    ),
    range: 'host:port, port 0 to 65535, an IPv6 host in brackets; or none',
    parse: (given: string) => (given === 'none' ? null : parseAddress(given)),
  } satisfies Setting<Address | null>,
  httpAddress: address(
    'RELORA_HTTP_ADDRESS',
    '127.0.0.1:9464',
    'Where the page, /metrics, /healthz and /readyz are served; port 0 takes a free one.',
  ),
  page: choice(
    'RELORA_PAGE',
    'auto',
    ['auto', 'on', 'off'],
    'Whether the HTTP port serves the page and its API; `auto` where this machine alone reaches that port.',
  ),
  pageHosts: list(
    'RELORA_PAGE_HOSTS',
    'names with `,` between them',
    'Names under which browsers reach the page, beside addresses and `localhost`; others could be of a site that lets its name point here.',
    /^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/,
  ),
  dataFolder: folder(
    'RELORA_DATA_FOLDER',
    '.relora',
    'Where the store, checkpoints, artifacts and data sets are kept; one server at a time holds it.',
  ),
  databaseUrl: urlSetting(
    'RELORA_DATABASE_URL',
    'PostgreSQL that several servers share; without it the store is a file in the data folder.',
    'postgres://user@host:port/database',
    parseDatabaseUrl,
  ),
  storeUrl: urlSetting(
    'RELORA_STORE_URL',
    'Where checkpoints, data sets, weights and artifacts lie that several servers share; the data folder then has copies.',
    storeUrlRange,
    parseStoreUrl,
  ),
  cacheBytesMax: integer(
    'RELORA_CACHE_BYTES_MAX',
    64 * 2 ** 30,
    0,
    2 ** 50,
    'What copies that nobody uses may take in the data folder, where RELORA_STORE_URL is set.',
  ),
  allowedFolders: folders(
    'RELORA_ALLOWED_FOLDERS',
    'Folders whose files clients may name as data, tokenizers or base weights; none by default.',
  ),

  leaseSeconds: number(
    'RELORA_LEASE_SECONDS',
    30,
    0.2,
    3600,
    'Silence after which other servers of the same database take over what a server works on.',
  ),
  tlsCertificate: file(
    'RELORA_TLS_CERTIFICATE',
    'Certificate of both ports in PEM, with those between it and its authority. A change holds within a second.',
  ),
  tlsKey: file('RELORA_TLS_KEY', 'Private key of that certificate in PEM.'),
  tlsClientCa: file(
    'RELORA_TLS_CLIENT_CA',
    'Authority in PEM that must have signed the certificate of every client; none by default.',
  ),
  behindProxy: onOff(
    'RELORA_BEHIND_PROXY',
    false,
    'Whether a proxy before the server speaks TLS with clients, so that the server itself need not.',
  ),
  insecure: {
    variable: 'RELORA_INSECURE',
    default: 'none',
    range: 'plain-text, no-login with `,` between them, or none',
    reason:
      'What may be missing on an address that other machines reach: TLS, so that all can be read on the way, or a login, so that everybody may do everything.',
    parse: parseInsecure,
  } satisfies Setting<readonly Insecurity[]>,
  tokenFile: file(
    'RELORA_TOKEN_FILE',
    'File of the tokens that callers may use, hashed; `relora-server token add` writes it. A change holds within a second.',
  ),
  oidcIssuer: url(
    'RELORA_OIDC_ISSUER',
    'Issuer of an OpenID Connect provider whose JWTs callers may use, exactly as the provider writes it.',
  ),
  oidcAudience: text(
    'RELORA_OIDC_AUDIENCE',
    '',
    'Audience that a JWT must name, so that one made for another service is refused; needed with an issuer.',
  ),
  oidcJwks: {
    variable: 'RELORA_OIDC_JWKS',
    default: '',
    range: 'https:// address, or path of a file',
    reason: 'Keys of the provider; by default those that its discovery document names.',
    parse: (value) => (/^https?:/.test(value) ? parseUrl(value) : value === '' ? '' : resolve(value)),
  } satisfies Setting<string>,
  oidcTenantClaim: text(
    'RELORA_OIDC_TENANT_CLAIM',
    'tenant',
    'Claim of a JWT that names the tenant; dots lead into objects. An operator needs none.',
  ),
  oidcRoleClaim: text(
    'RELORA_OIDC_ROLE_CLAIM',
    'role',
    'Claim of a JWT that names the role, or a list of which the highest counts; dots lead into objects.',
  ),
  oidcRoles: {
    variable: 'RELORA_OIDC_ROLES',
    default: 'viewer=viewer,trainer=trainer,operator=operator',
    range: 'ROLE=VALUE with `,` between them; a role may come more than once',
    reason: 'Which values of that claim mean which role, for providers that have groups of their own.',
    parse: parseRoleValues,
  } satisfies Setting<Readonly<Record<Role, readonly string[]>>>,
  withoutToken: {
    variable: 'RELORA_WITHOUT_TOKEN',
    default: 'health',
    range: 'health, reflection, metrics with `,` between them, or none',
    reason: 'What is answered without a token where callers need one.',
    parse: parseWithoutToken,
  } satisfies Setting<readonly OpenPart[]>,

  slots: integer('RELORA_SLOTS', 1, 1, 64, 'Jobs that run at once; each has a trainer process of its own.'),
  replicasMax: integer(
    'RELORA_REPLICAS_MAX',
    16,
    1,
    1024,
    'Processes that one job may train with; each takes a slot, and they begin at once.',
  ),
  mpirun: text(
    'RELORA_MPIRUN',
    '',
    'Program that starts the processes of a job over several servers: mpirun of Open MPI or of MPICH; without it a job stays on one.',
  ),
  mpiHost: text(
    'RELORA_MPI_HOST',
    '',
    'Name by which that program reaches this machine from the others; by default its host name.',
  ),
  mpiFlags: text(
    'RELORA_MPI_FLAGS',
    '',
    'Further flags of that program, with spaces between them, such as those that choose a network.',
  ),
  queueJobsMax: integer(
    'RELORA_QUEUE_JOBS_MAX',
    1000,
    1,
    100_000,
    'Jobs that may wait; more are refused, so a runaway client cannot fill the disk.',
  ),
  ownerRunningMax: integer(
    'RELORA_OWNER_RUNNING_MAX',
    0,
    0,
    100_000,
    'Jobs of one tenant and owner that run at once on all servers together; more wait. 0 for no limit.',
  ),
  quotaFile: file(
    'RELORA_QUOTA_FILE',
    'File of what each tenant may have: jobs that run and wait, bytes, device hours; none by default. A change holds within a second.',
  ),
  device: choice(
    'RELORA_DEVICE',
    'auto',
    ['auto', 'native', 'cuda', 'tensorflow', 'reference'],
    'Backend of jobs that ask for `auto`, which takes a card where there is one for the job, else the processor.',
  ),
  gpuSlots: integer(
    'RELORA_GPU_SLOTS',
    1,
    0,
    16,
    'Jobs that run at once on each NVIDIA card, beside those of RELORA_SLOTS on the processors; 0 leaves cards alone.',
  ),
  cudaFolder: optionalFolder(
    'RELORA_CUDA_FOLDER',
    "Where NVIDIA's libraries are taken from (NVRTC, cuBLASLt, the driver if it is there); by default they are looked for.",
  ),
  kernelCacheFolder: optionalFolder(
    'RELORA_KERNEL_CACHE_FOLDER',
    'Where compiled kernels of cards are kept; by default `kernels` in the data folder.',
  ),
  threads: integer(
    'RELORA_THREADS',
    0,
    0,
    1024,
    'Threads of a trainer; 0 for all processors divided by the slots. Results do not depend on it.',
  ),
  instructionSet: choice(
    'RELORA_INSTRUCTION_SET',
    'auto',
    ['auto', 'portable', 'avx2', 'avx512', 'avx512bf16', 'amx', 'neon', 'neonDot', 'neonBf16'],
    'Instructions of the native backend; `auto` takes the best that the processor has.',
  ),
  native: {
    variable: 'RELORA_NATIVE',
    default: 'auto',
    range: 'auto, build, prebuilt, or the absolute path of a folder',
    reason:
      'Native code: `build` is what was compiled here, `prebuilt` the package of binaries, `auto` the first of them that is there; a folder has such files.',
    parse(text: string): string {
      if (['auto', 'build', 'prebuilt'].includes(text) || (isAbsolute(text) && !text.includes('\0')))
        return text;
      throw new SettingProblem('auto, build, prebuilt, or the absolute path of a folder');
    },
  },
  trainerNice: integer(
    'RELORA_TRAINER_NICE',
    10,
    0,
    19,
    'Nice value of trainers, so the service answers while all processors train.',
  ),

  sandbox: choice(
    'RELORA_SANDBOX',
    'auto',
    ['auto', 'required', 'off'],
    'Whether the kernel holds trainers and other children to their folders and keeps the network from them: `auto` where it can, `required` or no server.',
  ),

  messageBytesMax: integer(
    'RELORA_MESSAGE_BYTES_MAX',
    4 << 20,
    1 << 20,
    64 << 20,
    'Longest gRPC message in bytes, both ways.',
  ),
  pageBytesMax: integer(
    'RELORA_PAGE_BYTES_MAX',
    1 << 20,
    1 << 16,
    4 << 20,
    'Bytes of a page of a list, which ends early before it has more; well below what clients take in one message.',
  ),
  messageFieldsMax: integer(
    'RELORA_MESSAGE_FIELDS_MAX',
    20_000,
    1000,
    10_000_000,
    'Fields and list entries in one message from a client, a fifth of them in one list, which bounds the time to read it.',
  ),
  textBytesMax: integer(
    'RELORA_TEXT_BYTES_MAX',
    1 << 16,
    1 << 14,
    64 << 20,
    'Longest text in one field of a message from a client; prompts and tokenizers may be as long as a message.',
  ),
  metadataBytesMax: integer(
    'RELORA_METADATA_BYTES_MAX',
    8192,
    1024,
    65_536,
    'Longest metadata of a call in bytes.',
  ),
  concurrentStreamsMax: integer(
    'RELORA_CONCURRENT_STREAMS_MAX',
    256,
    1,
    10_000,
    'Calls open at once on one connection.',
  ),
  connectionsMax: integer(
    'RELORA_CONNECTIONS_MAX',
    1000,
    1,
    100_000,
    'Connections to the gRPC port; fewer where the limit of open files is low. An idle one makes room for a new one.',
  ),
  httpConnectionsMax: integer(
    'RELORA_HTTP_CONNECTIONS_MAX',
    100,
    1,
    10_000,
    'Connections to the HTTP port; an idle one makes room for a new one.',
  ),
  spareConnectionsMax: integer(
    'RELORA_SPARE_CONNECTIONS_MAX',
    16,
    1,
    1000,
    'Connections beyond the limit of each port, for five seconds: they hear why they are refused, and get answers about health.',
  ),
  headerSeconds: number(
    'RELORA_HEADER_SECONDS',
    5,
    0.1,
    3600,
    'Time in which a new connection must have said what it wants: the preface of HTTP/2, the headers of HTTP.',
  ),
  connectionIdleSeconds: number(
    'RELORA_CONNECTION_IDLE_SECONDS',
    300,
    1,
    86_400,
    'Time without a call after which a gRPC connection is closed; clients open another by themselves.',
  ),
  connectionAgeSeconds: number(
    'RELORA_CONNECTION_AGE_SECONDS',
    0,
    0,
    604_800,
    'Age at which a gRPC connection takes no more calls, so that clients spread over new servers; 0 for none.',
  ),
  connectionAgeGraceSeconds: number(
    'RELORA_CONNECTION_AGE_GRACE_SECONDS',
    600,
    1,
    604_800,
    'Time that calls of a connection have to end after that age; a watch that is cut is resumed by the SDK.',
  ),
  requestSilenceSeconds: number(
    'RELORA_REQUEST_SILENCE_SECONDS',
    300,
    0.1,
    86_400,
    'Silence after which a call ends that owes the server a message: its request, or the next chunk of an upload.',
  ),
  readerSilenceSeconds: number(
    'RELORA_READER_SILENCE_SECONDS',
    120,
    0.1,
    86_400,
    'Time after which a stream is cut whose client takes nothing of what it is owed.',
  ),
  pingsPerSecondMax: integer(
    'RELORA_PINGS_PER_SECOND_MAX',
    2000,
    10,
    1_000_000,
    'PINGs and SETTINGS of a gRPC connection in one second; beyond it the connection is cut. Some clients send one for each round trip.',
  ),
  resetsPerSecondMax: integer(
    'RELORA_RESETS_PER_SECOND_MAX',
    500,
    1,
    1_000_000,
    'Calls of a gRPC connection that are begun and reset in one second; beyond it the connection is cut. Node itself allows 1,000, then 33 a second.',
  ),
  httpHeaderBytesMax: integer(
    'RELORA_HTTP_HEADER_BYTES_MAX',
    16_384,
    2048,
    1 << 20,
    'Longest headers of a request to the HTTP port in bytes, cookies among them.',
  ),
  addressConnectionsMax: integer(
    'RELORA_ADDRESS_CONNECTIONS_MAX',
    0,
    0,
    100_000,
    'Connections to each port from one address; more are closed. 0 for no limit of their own, as behind a proxy.',
  ),
  downloadsMax: integer(
    'RELORA_DOWNLOADS_MAX',
    64,
    1,
    10_000,
    'Downloads open at once on the server; one that nobody reads holds up to five megabytes.',
  ),
  uploadsMax: integer(
    'RELORA_UPLOADS_MAX',
    64,
    1,
    10_000,
    'Uploads open at once on the server, of data sets and of weights.',
  ),
  watchersMax: integer(
    'RELORA_WATCHERS_MAX',
    1000,
    1,
    100_000,
    'Watches open at once on the server; each reads the journal at its own speed.',
  ),
  uploadBytesMax: integer(
    'RELORA_UPLOAD_BYTES_MAX',
    16 * 2 ** 30,
    1,
    2 ** 50,
    'Longest uploaded file in bytes.',
  ),
  uploadPartBytes: integer(
    'RELORA_UPLOAD_PART_BYTES',
    32 * 2 ** 20,
    1 << 16,
    2 ** 30,
    'Bytes of an upload after which other servers of the store have what arrived, and can continue it.',
  ),
  datasetBytesMax: integer(
    'RELORA_DATASET_BYTES_MAX',
    64 * 2 ** 30,
    1,
    2 ** 50,
    'Bytes of all files of a data set.',
  ),
  datasetFilesMax: integer('RELORA_DATASET_FILES_MAX', 1000, 1, 100_000, 'Files of a data set.'),
  weightsBytesMax: integer(
    'RELORA_WEIGHTS_BYTES_MAX',
    64 * 2 ** 30,
    1,
    2 ** 50,
    'Bytes of all files of uploaded weights.',
  ),
  weightsFilesMax: integer('RELORA_WEIGHTS_FILES_MAX', 200, 2, 10_000, 'Files of uploaded weights.'),
  rankMax: integer('RELORA_RANK_MAX', 4096, 1, 65_536, 'Highest rank of an adapter; a layer may allow less.'),
  stepsMax: integer(
    'RELORA_STEPS_MAX',
    1_000_000_000,
    1,
    1_000_000_000,
    'Most steps of a job, all phases together.',
  ),
  sequenceLengthMax: integer('RELORA_SEQUENCE_LENGTH_MAX', 8192, 8, 1 << 20, 'Longest sequence in tokens.'),
  vocabularySizeMax: integer('RELORA_VOCABULARY_SIZE_MAX', 524_288, 257, 1 << 20, 'Largest vocabulary.'),
  parametersMax: integer('RELORA_PARAMETERS_MAX', 20_000_000_000, 1, 2 ** 50, 'Most weights of a model.'),
  jobMemoryBytesMax: integer(
    'RELORA_JOB_MEMORY_BYTES_MAX',
    0,
    0,
    2 ** 50,
    'Most memory that a job may be estimated to need; 0 for its share of the machine or container.',
  ),
  jobEventsMax: integer(
    'RELORA_JOB_EVENTS_MAX',
    10_000,
    1000,
    100_000_000,
    'Newest events of a job of which none is folded, however old: step events before them become spans of several steps.',
  ),
  stepWindowSeconds: integer(
    'RELORA_STEP_WINDOW_SECONDS',
    300,
    60,
    2_592_000,
    'Time in which no step event is folded; a watcher pauses for up to a minute, and finds each of them when it is back.',
  ),
  jobLogBytesMax: integer(
    'RELORA_JOB_LOG_BYTES_MAX',
    1 << 20,
    1 << 16,
    1 << 30,
    'Bytes that are kept of what the trainer of one attempt prints, the newest; of the last ten attempts of a job.',
  ),
  metricPointsMax: integer(
    'RELORA_METRIC_POINTS_MAX',
    40_000,
    1000,
    1_000_000,
    'Points in one answer of GetMetricHistory or CompareJobs, all series together; 60 bytes each.',
  ),
  preparerMemoryBytesMax: integer(
    'RELORA_PREPARER_MEMORY_BYTES_MAX',
    4 * 2 ** 30,
    2 ** 28,
    2 ** 50,
    'Memory of a process that reads files of clients (data sets, tokenizers, weights); above it the process is ended.',
  ),
  preparerThreads: integer(
    'RELORA_PREPARER_THREADS',
    0,
    0,
    256,
    'Threads that encode the text of a data set; 0 for as many as there are processors. Fewer where RELORA_PREPARER_MEMORY_BYTES_MAX does not hold them.',
  ),
  exportCheckTokens: integer(
    'RELORA_EXPORT_CHECK_TOKENS',
    512,
    0,
    65_536,
    'Tokens on which each export, read back from its files, is compared with the weights of its run; 0 for no comparison.',
  ),
  exportDifferenceFloat32Max: number(
    'RELORA_EXPORT_DIFFERENCE_FLOAT32_MAX',
    1e-4,
    0,
    10,
    'By how much of their spread logits of an export in float32 may differ, in the root of the mean square; beyond it the export fails.',
  ),
  exportDifferenceFloat16Max: number(
    'RELORA_EXPORT_DIFFERENCE_FLOAT16_MAX',
    0.01,
    0,
    10,
    'By how much of their spread logits of an export in float16 may differ, in the root of the mean square; beyond it the export fails.',
  ),
  exportDifferenceBfloat16Max: number(
    'RELORA_EXPORT_DIFFERENCE_BFLOAT16_MAX',
    0.05,
    0,
    10,
    'By how much of their spread logits of an export in bfloat16 may differ, in the root of the mean square; beyond it the export fails.',
  ),
  exportDifferenceQ8Max: number(
    'RELORA_EXPORT_DIFFERENCE_Q8_0_MAX',
    0.1,
    0,
    10,
    'By how much of their spread logits of an export in q8_0 may differ, in the root of the mean square; beyond it the export fails.',
  ),
  mixtureDatasetsMax: integer(
    'RELORA_MIXTURE_DATASETS_MAX',
    32,
    2,
    256,
    'Data sets in the mixture of one job; each has metrics of its own.',
  ),
  comparedJobsMax: integer(
    'RELORA_COMPARED_JOBS_MAX',
    16,
    2,
    64,
    'Jobs in one comparison; the journal of each is read.',
  ),

  heartbeatSeconds: number(
    'RELORA_HEARTBEAT_SECONDS',
    10,
    0.1,
    3600,
    'Silence on a watch after which a heartbeat is sent; shorter than the idle limit of proxies.',
  ),
  trainerSilenceSeconds: number(
    'RELORA_TRAINER_SILENCE_SECONDS',
    60,
    0.5,
    86_400,
    'Silence after which a trainer counts as hung; one that computes is not silent, however long it takes.',
  ),
  trainerBusySeconds: number(
    'RELORA_TRAINER_BUSY_SECONDS',
    3600,
    1,
    604_800,
    'Time in one computation after which a trainer counts as hung; longer than its longest micro-batch.',
  ),
  trainerGraceSeconds: number(
    'RELORA_TRAINER_GRACE_SECONDS',
    20,
    0.1,
    3600,
    'Time a trainer has to stop after its micro-batch, saving a checkpoint, until it is killed.',
  ),
  attemptsWithoutProgressMax: integer(
    'RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX',
    3,
    1,
    1000,
    'Crashes in a row without a new checkpoint after which a job fails.',
  ),
  retryDelaySeconds: number(
    'RELORA_RETRY_DELAY_SECONDS',
    1,
    0,
    3600,
    'Wait after a crash; doubles with every crash without progress, up to 60 times itself.',
  ),
  tokenizerCpuSeconds: number(
    'RELORA_TOKENIZER_CPU_SECONDS',
    60,
    1,
    86_400,
    'Processor time in which a tokenizer.json must load and encode a line of text, before it is used.',
  ),
  taskTimeoutSeconds: number(
    'RELORA_TASK_TIMEOUT_SECONDS',
    600,
    1,
    86_400,
    'Longest time for generating a text or showing a data set.',
  ),
  tasksMax: integer(
    'RELORA_TASKS_MAX',
    2,
    2,
    64,
    'Child processes for data sets and generation at once; one of them at most prepares data.',
  ),
  shutdownSeconds: number(
    'RELORA_SHUTDOWN_SECONDS',
    25,
    1,
    3600,
    'Time from SIGTERM to the end; below the 30 s that Kubernetes waits.',
  ),

  undeleteSeconds: number(
    'RELORA_UNDELETE_SECONDS',
    7 * 86_400,
    0,
    10 * 365 * 86_400,
    'Time after a deletion in which it can be taken back; the space is free after it.',
  ),
  cleanupSeconds: number(
    'RELORA_CLEANUP_SECONDS',
    300,
    0.1,
    86_400,
    'How often is looked for what is to be thrown away.',
  ),
  ...retention('job', 'JOB', 0, 'jobs after their end, as if they were deleted'),
  ...retention('checkpoint', 'CHECKPOINT', 0, 'checkpoints of an ended job; its newest good one stays'),
  ...retention('upload', 'UPLOAD', 7, 'abandoned uploads, and data sets that failed'),

  freeDiskBytesMin: integer(
    'RELORA_FREE_DISK_BYTES_MIN',
    512 * 2 ** 20,
    0,
    2 ** 50,
    'Free space below which no job starts and no bytes are received.',
  ),
  storeReserveBytes: integer(
    'RELORA_STORE_RESERVE_BYTES',
    4 * 2 ** 20,
    0,
    2 ** 30,
    'Size of a file that is given up where a full disk would keep the store from being opened or closed; 0 for none.',
  ),
  storeCheckBytesMax: integer(
    'RELORA_STORE_CHECK_BYTES_MAX',
    256 * 2 ** 20,
    0,
    2 ** 50,
    'Up to this size a store in a file is read whole and checked when it is opened; of a larger one all but the history of steps, so that a server starts in seconds.',
  ),
  webhooksMax: integer('RELORA_WEBHOOKS_MAX', 32, 0, 10_000, 'Webhooks of a tenant; 0 for none at all.'),
  webhookNetworks: {
    variable: 'RELORA_WEBHOOK_NETWORKS',
    default: '',
    range: 'addresses or networks such as 10.1.0.0/16 with `,` between them',
    reason:
      'Networks that webhooks may reach beside public addresses; without them nobody can have the server ask machines that only it can reach. With 127.0.0.0/8 in it also http:// to this machine.',
    parse: parseNetworks,
  } satisfies Setting<readonly string[]>,
  webhookCa: file(
    'RELORA_WEBHOOK_CA',
    'Authority in PEM that receivers of webhooks may have their certificates from, beside the usual ones; none by default.',
  ),
  webhookSeconds: number(
    'RELORA_WEBHOOK_SECONDS',
    15,
    0.1,
    300,
    'Time that a receiver of a webhook has for everything, from the look-up of its name to its answer.',
  ),
  webhookRetrySeconds: number(
    'RELORA_WEBHOOK_RETRY_SECONDS',
    5,
    0.01,
    3600,
    'Wait after the first failed attempt to send a message; each one after it is four times as long, up to six hours.',
  ),
  webhookAttemptsMax: integer(
    'RELORA_WEBHOOK_ATTEMPTS_MAX',
    10,
    1,
    100,
    'Attempts to send a message, after which it is a dead letter: with the default waits after about 20 hours.',
  ),
  webhookPendingMax: integer(
    'RELORA_WEBHOOK_PENDING_MAX',
    10_000,
    1,
    10_000_000,
    'Messages of a webhook that wait to be sent; beyond it events wait in the journal.',
  ),
  webhookDeadMax: integer(
    'RELORA_WEBHOOK_DEAD_MAX',
    1000,
    0,
    1_000_000,
    'Dead letters that are kept of a webhook, the newest.',
  ),
  webhookBodyBytesMax: integer(
    'RELORA_WEBHOOK_BODY_BYTES_MAX',
    262_144,
    1024,
    4 << 20,
    'Longest message of a webhook; an event that makes a longer one is left out of it, and WatchJob has it by its number.',
  ),
  tensorBoardFolder: optionalFolder(
    'RELORA_TENSORBOARD_FOLDER',
    'Where the curves of jobs are also written for TensorBoard, a folder for each job; nowhere by default.',
  ),
  mlflowUrl: urlSetting(
    'RELORA_MLFLOW_URL',
    'MLflow server that the curves of jobs are also sent to; none by default.',
    'http:// or https:// address',
    (value) =>
      URL.canParse(value) && /^https?:$/.test(new URL(value).protocol) ? new URL(value) : undefined,
  ),
  mlflowExperiment: text(
    'RELORA_MLFLOW_EXPERIMENT',
    'relora',
    'Experiment of MLflow for jobs that name none by the label `mlflow.experiment`.',
  ),
  mlflowTokenFile: file('RELORA_MLFLOW_TOKEN_FILE', 'File of the token that MLflow wants, if it wants one.'),
  auditFile: file(
    'RELORA_AUDIT_FILE',
    'File that every change is appended to as a line of JSON, beside the rows of the store; none by default.',
  ),
  auditDays: number(
    'RELORA_AUDIT_DAYS',
    365,
    0,
    36_500,
    'How long rows of the audit log are kept; 0 for ever.',
  ),
  usageDays: number(
    'RELORA_USAGE_DAYS',
    1096,
    0,
    36_500,
    'How long is kept what ended attempts at jobs took, also of jobs that are gone; 0 for ever.',
  ),
  logLevel: choice(
    'RELORA_LOG_LEVEL',
    'info',
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    'Least level that is logged.',
  ),
  reflection: onOff('RELORA_REFLECTION', true, 'Whether the API describes itself to tools such as grpcurl.'),
} as const satisfies Record<string, Setting<unknown>>;

/** The settings in force. */
export type Config = {
  readonly [Name in keyof typeof settings]: ReturnType<(typeof settings)[Name]['parse']>;
};

export interface Address {
  host: string;
  port: number;
}

/** All that is wrong with the settings, one line each. */
export class ConfigInvalid extends Error {
  override name = 'ConfigInvalid';
  constructor(readonly problems: string[]) {
    super(problems.join('\n'));
  }
}

/** What the command line and the SDK read: often set in the shell that starts the server, too. */
const clientVariables: readonly string[] = [
  'RELORA_ADDRESS',
  'RELORA_TOKEN',
  'RELORA_TENANT',
  'RELORA_PROFILE',
  'RELORA_CA_FILE',
  'RELORA_CERTIFICATE_FILE',
  'RELORA_KEY_FILE',
];

/** Reads the settings from an environment; throws ConfigInvalid with every problem, unknown RELORA_* variables among them. */
export function readConfig(environment: Readonly<Record<string, string | undefined>> = process.env): Config {
  const problems: string[] = [];
  const config: Record<string, unknown> = {};
  for (const [name, setting] of Object.entries(settings)) {
    const text = environment[setting.variable] ?? setting.default;
    try {
      config[name] = setting.parse(text);
    } catch (error) {
      if (!(error instanceof SettingProblem)) throw error;
      problems.push(
        `${setting.variable} must be ${error.message}, not ${JSON.stringify(withoutLogin(text))}`,
      );
    }
  }

  const known = Object.values(settings).map(({ variable }) => variable as string);
  for (const variable of Object.keys(environment)) {
    if (!variable.startsWith('RELORA_') || known.includes(variable) || clientVariables.includes(variable))
      continue;
    problems.push(`${variable} is not a setting; did you mean ${nearest(variable, known)}?`);
  }
  if (problems.length > 0) throw new ConfigInvalid(problems);
  // What contradicts each other can be said of settings that are right by themselves alone.
  const contradictions = contradictionsOf(config as unknown as Config);
  if (contradictions.length > 0) throw new ConfigInvalid(contradictions);
  return config as unknown as Config;
}

/** An address may have a password before its last @, which is in no message. */
function withoutLogin(text: string): string {
  return text.replace(/^(.*?\/\/)?.*@/s, '$1…@');
}

function contradictionsOf(config: Config): string[] {
  const { oidcIssuer, oidcAudience, oidcJwks, tlsCertificate, tlsKey, tlsClientCa, databaseUrl, storeUrl } =
    config;
  const problems = exposureOf(config);
  if ((tlsCertificate === '') !== (tlsKey === ''))
    problems.push('RELORA_TLS_CERTIFICATE and RELORA_TLS_KEY must be set together');
  if (tlsClientCa !== '' && tlsCertificate === '')
    problems.push('RELORA_TLS_CLIENT_CA needs RELORA_TLS_CERTIFICATE and RELORA_TLS_KEY');
  if (oidcIssuer !== '' && oidcAudience === '')
    problems.push(
      'RELORA_OIDC_AUDIENCE must be set with RELORA_OIDC_ISSUER: else a JWT for any service is taken',
    );
  if (oidcIssuer === '' && (oidcAudience !== '' || oidcJwks !== ''))
    problems.push('RELORA_OIDC_ISSUER must be set with RELORA_OIDC_AUDIENCE and RELORA_OIDC_JWKS');
  if (databaseUrl !== null && storeUrl === null)
    problems.push(
      'RELORA_STORE_URL must be set with RELORA_DATABASE_URL: servers share checkpoints and data there',
    );
  if (config.mpirun !== '' && databaseUrl === null)
    problems.push('RELORA_MPIRUN needs RELORA_DATABASE_URL: a job spans the servers of one store');
  if (config.mpirun !== '' && config.sandbox === 'required')
    problems.push(
      'RELORA_MPIRUN needs RELORA_SANDBOX=auto or off: processes that exchange sums with other machines need the network',
    );
  if (config.pageBytesMax > config.messageBytesMax)
    problems.push('RELORA_PAGE_BYTES_MAX must be at most RELORA_MESSAGE_BYTES_MAX: a page is one message');
  return problems;
}

/** What an address that other machines reach lacks, and that nobody said may be missing. */
function exposureOf(config: Config): string[] {
  const { grpcAddress, httpAddress, insecure, behindProxy } = config;
  const exposed = [
    ['RELORA_GRPC_ADDRESS', grpcAddress] as const,
    ['RELORA_HTTP_ADDRESS', httpAddress] as const,
  ].filter(([, { host }]) => !isLoopback(host));
  const asksWhoCalls = config.tokenFile !== '' || config.oidcIssuer !== '' || config.tlsClientCa !== '';
  const isEncrypted = config.tlsCertificate !== '' || behindProxy;
  return exposed.flatMap(([variable, { host }]) => {
    const problems: string[] = [];
    if (!isEncrypted && !insecure.includes('plain-text'))
      problems.push(
        `${variable} is ${host}, which other machines reach, in plain text: set RELORA_TLS_CERTIFICATE and RELORA_TLS_KEY, or ` +
          'RELORA_BEHIND_PROXY=on where a proxy speaks TLS, or RELORA_INSECURE=plain-text if all may be read on the way',
      );
    if (!asksWhoCalls && !insecure.includes('no-login'))
      problems.push(
        `${variable} is ${host}, which other machines reach, without a login: set RELORA_TOKEN_FILE, RELORA_OIDC_ISSUER or ` +
          'RELORA_TLS_CLIENT_CA, or RELORA_INSECURE=no-login if everybody who reaches it may do everything',
      );
    return problems;
  });
}

function integer(
  variable: Setting<number>['variable'],
  value: number,
  min: number,
  max: number,
  reason: string,
): Setting<number> {
  return bounded({ variable, value, min, max, reason, noun: 'whole number', pattern: /^[0-9]{1,16}$/ });
}

function number(
  variable: Setting<number>['variable'],
  value: number,
  min: number,
  max: number,
  reason: string,
): Setting<number> {
  return bounded({ variable, value, min, max, reason, noun: 'number', pattern: /^[0-9]+(\.[0-9]+)?$/ });
}

function bounded(setting: {
  variable: Setting<number>['variable'];
  value: number;
  min: number;
  max: number;
  reason: string;
  noun: string;
  pattern: RegExp;
}): Setting<number> {
  const { variable, value, min, max, reason, pattern } = setting;
  const range = `${setting.noun} from ${min} to ${max}`;
  return {
    variable,
    default: String(value),
    range,
    reason,
    parse(text) {
      const parsed = pattern.test(text) ? Number(text) : NaN;
      if (!(parsed >= min && parsed <= max)) throw new SettingProblem(`a ${range}`);
      return parsed;
    },
  };
}

/** The three settings of a retention rule; see retentionRule.ts. */
function retention<const Name extends string>(
  name: Name,
  word: Uppercase<Name>,
  days: number,
  what: string,
): Record<`${Name}RetentionDays` | `${Name}RetentionCount` | `${Name}RetentionBytes`, Setting<number>> {
  return {
    [`${name}RetentionDays`]: number(
      `RELORA_${word}_RETENTION_DAYS`,
      days,
      0,
      36_500,
      `How long to keep ${what}; 0 for ever.`,
    ),
    [`${name}RetentionCount`]: integer(
      `RELORA_${word}_RETENTION_COUNT`,
      0,
      0,
      1_000_000,
      `How many to keep: ${what}; 0 for all.`,
    ),
    [`${name}RetentionBytes`]: integer(
      `RELORA_${word}_RETENTION_BYTES`,
      0,
      0,
      2 ** 50,
      `How many bytes to keep: ${what}; 0 for no limit.`,
    ),
  } as Record<`${Name}RetentionDays` | `${Name}RetentionCount` | `${Name}RetentionBytes`, Setting<number>>;
}

function choice<const T extends string>(
  variable: Setting<T>['variable'],
  value: T,
  values: readonly T[],
  reason: string,
): Setting<T> {
  return {
    variable,
    default: value,
    range: values.join(', '),
    reason,
    parse(text) {
      const found = values.find((candidate) => candidate === text);
      if (found === undefined) throw new SettingProblem(`one of ${values.join(', ')}`);
      return found;
    },
  };
}

function onOff(variable: Setting<boolean>['variable'], value: boolean, reason: string): Setting<boolean> {
  const { parse, ...rest } = choice(variable, value ? 'on' : 'off', ['on', 'off'], reason);
  return { ...rest, parse: (text) => parse(text) === 'on' };
}

function address(variable: Setting<Address>['variable'], value: string, reason: string): Setting<Address> {
  return {
    variable,
    default: value,
    range: 'host:port, port 0 to 65535, an IPv6 host in brackets',
    reason,
    parse: parseAddress,
  };
}

function parseAddress(text: string): Address {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || !(port <= 65_535))
    throw new SettingProblem('host:port with a port from 0 to 65535');
  return { host, port };
}

function text(variable: Setting<string>['variable'], value: string, reason: string): Setting<string> {
  return {
    variable,
    default: value,
    range: 'text of at most 200 characters',
    reason,
    parse(given) {
      if (given.length > 200 || /\p{Cc}/u.test(given))
        throw new SettingProblem('text of at most 200 characters');
      return given;
    },
  };
}

function list(
  variable: Setting<readonly string[]>['variable'],
  range: string,
  reason: string,
  pattern: RegExp,
): Setting<readonly string[]> {
  return {
    variable,
    default: '',
    range,
    reason,
    parse(text) {
      const parts = text.split(',').flatMap((part) => part.trim() || []);
      if (!parts.every((part) => pattern.test(part))) throw new SettingProblem(range);
      return parts;
    },
  };
}

function file(variable: Setting<string>['variable'], reason: string): Setting<string> {
  return {
    variable,
    default: '',
    range: 'path of a file; a relative one begins at the working directory',
    reason,
    parse(path) {
      if (path.includes('\0')) throw new SettingProblem('the path of a file');
      return path === '' ? '' : resolve(path);
    },
  };
}

function url(variable: Setting<string>['variable'], reason: string): Setting<string> {
  return {
    variable,
    default: '',
    range: 'https:// address; http:// on this machine alone',
    reason,
    parse: (value) => (value === '' ? '' : parseUrl(value)),
  };
}

/** As it was written: an issuer is compared letter by letter. */
function parseUrl(text: string): string {
  if (!isSafeAddress(text)) throw new SettingProblem('an https:// address (http:// on this machine alone)');
  return text;
}

/** Whether nobody on the way can change what is read from an address. */
export function isSafeAddress(text: string): boolean {
  const { protocol, hostname } = URL.canParse(text) ? new URL(text) : { protocol: '', hostname: '' };
  return protocol === 'https:' || (protocol === 'http:' && isLoopback(hostname));
}

/** Whether only this machine reaches an address. */
export function isLoopback(host: string): boolean {
  return /^(localhost|127(\.[0-9]{1,3}){3}|\[?::1\]?)$/.test(host);
}

function parseRoleValues(text: string): Readonly<Record<Role, readonly string[]>> {
  const values: Record<Role, string[]> = { viewer: [], trainer: [], operator: [] };
  for (const entry of text.split(',')) {
    const at = entry.indexOf('=');
    const role = roles.find((known) => known === entry.slice(0, at).trim());
    const value = entry.slice(at + 1).trim();
    if (role === undefined || value === '')
      throw new SettingProblem(`ROLE=VALUE with \`,\` between them, roles ${roles.join(', ')}`);
    values[role].push(value);
  }
  return values;
}

const openParts = ['health', 'reflection', 'metrics'] as const;
export type OpenPart = (typeof openParts)[number];
const insecurities = ['plain-text', 'no-login'] as const;
export type Insecurity = (typeof insecurities)[number];

function parseWithoutToken(text: string): readonly OpenPart[] {
  return parseList(text, openParts);
}

function parseInsecure(text: string): readonly Insecurity[] {
  return parseList(text, insecurities);
}

function parseList<const Word extends string>(text: string, words: readonly Word[]): readonly Word[] {
  if (text === 'none') return [];
  return text.split(',').map((part) => {
    const word = words.find((known) => known === part.trim());
    if (word === undefined)
      throw new SettingProblem(`any of ${words.join(', ')} with \`,\` between them, or none`);
    return word;
  });
}

function parseNetworks(text: string): readonly string[] {
  const networks = text.split(',').filter((part) => part !== '');
  for (const network of networks) {
    const [address = '', bits, ...rest] = network.split('/');
    const bitsMax = isIP(address) === 4 ? 32 : 128;
    const isNetwork = isIP(address) !== 0 && !address.includes('%') && rest.length === 0;
    if (!isNetwork || (bits !== undefined && !(/^\d{1,3}$/.test(bits) && Number(bits) <= bitsMax)))
      throw new SettingProblem('addresses or networks such as 10.1.0.0/16 with `,` between them');
  }
  return networks;
}

/** Null where it is not set. */
function urlSetting<T>(
  variable: Setting<T | null>['variable'],
  reason: string,
  range: string,
  read: (text: string) => T | undefined,
): Setting<T | null> {
  return {
    variable,
    default: '',
    range,
    reason,
    parse(text) {
      if (text === '') return null;
      const value = read(text);
      if (value === undefined) throw new SettingProblem(range);
      return value;
    },
  };
}

function folder(variable: Setting<string>['variable'], value: string, reason: string): Setting<string> {
  return {
    variable,
    default: value,
    range: 'path of a folder; a relative one begins at the working directory',
    reason,
    parse(text) {
      if (text === '' || text.includes('\0')) throw new SettingProblem('the path of a folder');
      return resolve(text);
    },
  };
}

/** Null by default. */
function optionalFolder(variable: Setting<string>['variable'], reason: string): Setting<string | null> {
  const { parse, ...rest } = folder(variable, '', reason);
  return { ...rest, parse: (text) => (text === '' ? null : parse(text)) };
}

function folders(
  variable: Setting<readonly string[]>['variable'],
  reason: string,
): Setting<readonly string[]> {
  return {
    variable,
    default: '',
    range: 'absolute paths with `:` between them',
    reason,
    parse(text) {
      const paths = text.split(':').filter((path) => path !== '');
      if (!paths.every((path) => isAbsolute(path) && !path.includes('\0')))
        throw new SettingProblem('absolute paths with `:` between them');
      return paths;
    },
  };
}
