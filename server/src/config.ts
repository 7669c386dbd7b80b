import { isIP } from 'node:net';
import { isAbsolute, resolve } from 'node:path';
import { roles, type Role } from './roles.js';
import { nearest } from './nearest.js';
import { parseDatabaseUrl, parseStoreUrl, storeUrlRange } from './store/storeUrl.js';

/** One setting: its variable, what it may be and why it exists. docs/configuration.md is checked against these. */
export interface Setting<T> {
  variable: `RELORA_${string}`;
  /** As it would be written in the environment. */
  default: string;
  /** Accepted values, for people. */
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
      'Address that serves only health over gRPC, in plain text and without a login, for probes that do not speak TLS; none for no such address.',
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
    'Whether the HTTP port serves the web page and its API; with `auto` only if no other machine can reach that port.',
  ),
  pageHosts: list(
    'RELORA_PAGE_HOSTS',
    'names with `,` between them',
    'Host names under which browsers may use the API of the page, besides IP addresses and `localhost`; any other name is refused, since a hostile site could let its name point here.',
    /^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/,
  ),
  dataFolder: folder(
    'RELORA_DATA_FOLDER',
    '.relora',
    'Folder of the store, checkpoints, artifacts and data sets; only one server at a time can use it.',
  ),
  databaseUrl: urlSetting(
    'RELORA_DATABASE_URL',
    'PostgreSQL database that several servers share; without it the store is a file in the data folder.',
    'postgres://user@host:port/database',
    parseDatabaseUrl,
  ),
  storeUrl: urlSetting(
    'RELORA_STORE_URL',
    'Where several servers keep the checkpoints, data sets, weights and artifacts that they share; the data folder then has copies.',
    storeUrlRange,
    parseStoreUrl,
  ),
  cacheBytesMax: integer(
    'RELORA_CACHE_BYTES_MAX',
    64 * 2 ** 30,
    0,
    2 ** 50,
    'Bytes that unused copies may take in the data folder, if RELORA_STORE_URL is set.',
  ),
  allowedFolders: folders(
    'RELORA_ALLOWED_FOLDERS',
    'Folders of the server from which clients may name files as data, tokenizers or base weights; none by default.',
  ),

  leaseSeconds: number(
    'RELORA_LEASE_SECONDS',
    30,
    0.2,
    3600,
    'Time without a sign of life after which other servers of the same database take over the work of a server.',
  ),
  tlsCertificate: file(
    'RELORA_TLS_CERTIFICATE',
    'Certificate of both ports in PEM, with the intermediate certificates. A change takes effect within a second.',
  ),
  tlsKey: file('RELORA_TLS_KEY', 'Private key of that certificate in PEM.'),
  tlsClientCa: file(
    'RELORA_TLS_CLIENT_CA',
    'Certificate authority in PEM that must have signed the certificate of every client; by default clients need no certificate.',
  ),
  behindProxy: onOff(
    'RELORA_BEHIND_PROXY',
    false,
    'Whether a proxy in front of the server speaks TLS with clients, so that the server itself need not.',
  ),
  insecure: {
    variable: 'RELORA_INSECURE',
    default: 'none',
    range: 'plain-text, no-login with `,` between them, or none',
    reason:
      'What may be missing on an address that other machines can reach: TLS (plain-text: the traffic can be read on its way) or a login (no-login: everybody may do everything).',
    parse: parseInsecure,
  } satisfies Setting<readonly Insecurity[]>,
  tokenFile: file(
    'RELORA_TOKEN_FILE',
    'File with the hashes of the tokens that callers may use; `relora-server token add` writes it. A change takes effect within a second.',
  ),
  oidcIssuer: url(
    'RELORA_OIDC_ISSUER',
    'Issuer of the OpenID Connect provider whose JWTs are accepted, written exactly as the provider does.',
  ),
  oidcAudience: text(
    'RELORA_OIDC_AUDIENCE',
    '',
    'Audience that a JWT must name, so that a JWT made for another service is refused; required with an issuer.',
  ),
  oidcJwks: {
    variable: 'RELORA_OIDC_JWKS',
    default: '',
    range: 'https:// address, or path of a file',
    reason: 'Where the keys of the provider are; by default its discovery document names the address.',
    parse: (value) => (/^https?:/.test(value) ? parseUrl(value) : value === '' ? '' : resolve(value)),
  } satisfies Setting<string>,
  oidcTenantClaim: text(
    'RELORA_OIDC_TENANT_CLAIM',
    'tenant',
    'Claim of a JWT that names the tenant; a dot leads into an object. The JWT of an operator needs none.',
  ),
  oidcRoleClaim: text(
    'RELORA_OIDC_ROLE_CLAIM',
    'role',
    'Claim of a JWT that names the role, or a list of roles of which the highest counts; a dot leads into an object.',
  ),
  oidcRoles: {
    variable: 'RELORA_OIDC_ROLES',
    default: 'viewer=viewer,trainer=trainer,operator=operator',
    range: 'ROLE=VALUE with `,` between them; a role may come more than once',
    reason: 'Which value of that claim means which role, for providers with their own names of groups.',
    parse: parseRoleValues,
  } satisfies Setting<Readonly<Record<Role, readonly string[]>>>,
  withoutToken: {
    variable: 'RELORA_WITHOUT_TOKEN',
    default: 'health',
    range: 'health, reflection, metrics with `,` between them, or none',
    reason: 'What is answered without a token on a server that requires one.',
    parse: parseWithoutToken,
  } satisfies Setting<readonly OpenPart[]>,

  slots: integer(
    'RELORA_SLOTS',
    1,
    1,
    64,
    'Number of jobs that run at the same time; each has its own trainer process.',
  ),
  replicasMax: integer(
    'RELORA_REPLICAS_MAX',
    16,
    1,
    1024,
    'Largest number of processes with which one job may train; each takes a slot, and all start together.',
  ),
  mpirun: text(
    'RELORA_MPIRUN',
    '',
    'Program that starts the processes of a job that spans several servers: mpirun of Open MPI or of MPICH; without it each job runs on one server.',
  ),
  mpiHost: text(
    'RELORA_MPI_HOST',
    '',
    'Name under which mpirun on other machines reaches this one; by default its host name.',
  ),
  mpiFlags: text(
    'RELORA_MPI_FLAGS',
    '',
    'Further flags for mpirun, separated by spaces, for example to choose a network.',
  ),
  mpiStartSeconds: number(
    'RELORA_MPI_START_SECONDS',
    120,
    1,
    86_400,
    'Time within which mpirun must have started the processes of a job on the server that runs it.',
  ),
  queueJobsMax: integer(
    'RELORA_QUEUE_JOBS_MAX',
    1000,
    1,
    100_000,
    'Jobs that may wait in the queue; more are refused, so that a runaway client cannot fill the disk.',
  ),
  ownerRunningMax: integer(
    'RELORA_OWNER_RUNNING_MAX',
    0,
    0,
    100_000,
    'Jobs of one owner within a tenant that run at the same time, on all servers together; more wait. 0 for no limit.',
  ),
  quotaFile: file(
    'RELORA_QUOTA_FILE',
    'File with the quotas of tenants: running and queued jobs, bytes, device hours; no quotas by default. A change takes effect within a second.',
  ),
  device: choice(
    'RELORA_DEVICE',
    'auto',
    ['auto', 'native', 'cuda', 'tensorflow', 'reference'],
    'Device of jobs that ask for `auto`; `auto` here takes a card if there is a suitable one, otherwise the processor.',
  ),
  gpuSlots: integer(
    'RELORA_GPU_SLOTS',
    1,
    0,
    16,
    'Jobs that run at the same time on each NVIDIA card, in addition to those of RELORA_SLOTS on the processors; 0 for not using cards.',
  ),
  cudaFolder: optionalFolder(
    'RELORA_CUDA_FOLDER',
    "Folder of NVIDIA's libraries (NVRTC, cuBLASLt, and the driver if it is there); by default the server searches for them.",
  ),
  kernelCacheFolder: optionalFolder(
    'RELORA_KERNEL_CACHE_FOLDER',
    'Folder for compiled kernels of cards; by default `kernels` in the data folder.',
  ),
  threads: integer(
    'RELORA_THREADS',
    0,
    0,
    1024,
    'Threads of a trainer; 0 for the number of processors divided by the slots. Results do not depend on it.',
  ),
  instructionSet: choice(
    'RELORA_INSTRUCTION_SET',
    'auto',
    ['auto', 'portable', 'avx2', 'avx512', 'avx512bf16', 'amx', 'neon', 'neonDot', 'neonBf16'],
    'Instructions of the native backend; `auto` takes the fastest that the processor has (docs/performance.md).',
  ),
  native: {
    variable: 'RELORA_NATIVE',
    default: 'auto',
    range: 'auto, build, prebuilt, or the absolute path of a folder',
    reason:
      'Which native code is loaded: `build` what was compiled here, `prebuilt` the package of binaries, `auto` the first of these that exists; or a folder with such files.',
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
    'Nice value of trainers; above 0 the server keeps answering while all processors train.',
  ),

  sandbox: choice(
    'RELORA_SANDBOX',
    'auto',
    ['auto', 'required', 'off'],
    'Whether the kernel confines trainers and other child processes to their folders, without network: `auto` if it can, `required` to refuse to start otherwise.',
  ),

  nccl: choice(
    'RELORA_NCCL',
    'off',
    ['off', 'on'],
    'Whether the cards of one job add gradients among themselves by NCCL, where it is installed. NCCL needs sockets, so the kernel does not confine the trainers of such jobs.',
  ),

  messageBytesMax: integer(
    'RELORA_MESSAGE_BYTES_MAX',
    4 << 20,
    1 << 20,
    64 << 20,
    'Longest gRPC message in bytes, in both directions.',
  ),
  pageBytesMax: integer(
    'RELORA_PAGE_BYTES_MAX',
    1 << 20,
    1 << 16,
    4 << 20,
    'Bytes of one page of a list; a page that would be larger ends early. Well below the longest message that clients accept.',
  ),
  messageFieldsMax: integer(
    'RELORA_MESSAGE_FIELDS_MAX',
    20_000,
    1000,
    10_000_000,
    'Fields and list entries in one message from a client, a fifth of them in one list; this bounds the time to read it.',
  ),
  textBytesMax: integer(
    'RELORA_TEXT_BYTES_MAX',
    1 << 16,
    1 << 14,
    64 << 20,
    'Longest text in one field of a message from a client, in bytes; prompts may have 1 MiB, tokenizers 3 MiB, questions of a job 256 KiB, and those of EvaluateModel may be as long as the message.',
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
    'Calls that may be open at the same time on one connection.',
  ),
  connectionsMax: integer(
    'RELORA_CONNECTIONS_MAX',
    1000,
    1,
    100_000,
    'Connections to the gRPC port; fewer if the limit of open files is low. When all are taken, an idle one is closed for a new one.',
  ),
  httpConnectionsMax: integer(
    'RELORA_HTTP_CONNECTIONS_MAX',
    100,
    1,
    10_000,
    'Connections to the HTTP port; when all are taken, an idle one is closed for a new one.',
  ),
  spareConnectionsMax: integer(
    'RELORA_SPARE_CONNECTIONS_MAX',
    16,
    1,
    1000,
    'Connections beyond the limit of each port, each for five seconds, on which clients learn why they are refused and health is still answered.',
  ),
  headerSeconds: number(
    'RELORA_HEADER_SECONDS',
    5,
    0.1,
    3600,
    'Time in which a new connection must have sent its first data: the preface of HTTP/2, or the headers of HTTP, for which it is at most 10 s.',
  ),
  connectionIdleSeconds: number(
    'RELORA_CONNECTION_IDLE_SECONDS',
    300,
    1,
    86_400,
    'Time without a call after which a gRPC connection is closed; clients reconnect by themselves.',
  ),
  connectionAgeSeconds: number(
    'RELORA_CONNECTION_AGE_SECONDS',
    0,
    0,
    604_800,
    'Age at which a gRPC connection accepts no more calls, so that clients spread over newly added servers; 0 for no limit.',
  ),
  connectionAgeGraceSeconds: number(
    'RELORA_CONNECTION_AGE_GRACE_SECONDS',
    600,
    1,
    604_800,
    'Time that open calls of a connection have to end after it reached that age; the SDK resumes a watch that is cut off.',
  ),
  requestSilenceSeconds: number(
    'RELORA_REQUEST_SILENCE_SECONDS',
    300,
    0.1,
    86_400,
    'Time that the server waits for the next message of a call, its request or the next chunk of an upload, before it ends the call.',
  ),
  readerSilenceSeconds: number(
    'RELORA_READER_SILENCE_SECONDS',
    120,
    0.1,
    86_400,
    'Time after which a stream is cut off if its client reads none of the data that waits for it.',
  ),
  pingsPerSecondMax: integer(
    'RELORA_PINGS_PER_SECOND_MAX',
    2000,
    10,
    1_000_000,
    'PING and SETTINGS frames on a gRPC connection in one second; above it the connection is closed. Some clients send one for each round trip.',
  ),
  resetsPerSecondMax: integer(
    'RELORA_RESETS_PER_SECOND_MAX',
    500,
    1,
    1_000_000,
    'Calls on a gRPC connection that are begun and reset in one second; above it the connection is closed. Node itself allows 1,000, then 33 a second.',
  ),
  httpHeaderBytesMax: integer(
    'RELORA_HTTP_HEADER_BYTES_MAX',
    16_384,
    2048,
    1 << 20,
    'Longest headers of a request to the HTTP port in bytes, including cookies.',
  ),
  addressConnectionsMax: integer(
    'RELORA_ADDRESS_CONNECTIONS_MAX',
    0,
    0,
    100_000,
    'Connections to each port from one IP address; more are closed. 0 for no such limit, as is needed behind a proxy.',
  ),
  downloadsMax: integer(
    'RELORA_DOWNLOADS_MAX',
    64,
    1,
    10_000,
    'Downloads, exports of jobs and checks of files that may be open at the same time; one that its client does not read takes up to five megabytes of memory.',
  ),
  uploadsMax: integer(
    'RELORA_UPLOADS_MAX',
    64,
    1,
    10_000,
    'Uploads of data sets and weights and imports of jobs that may be open at the same time.',
  ),
  watchersMax: integer(
    'RELORA_WATCHERS_MAX',
    1000,
    1,
    100_000,
    'Watches that may be open at the same time; each reads the journal at its own speed.',
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
    'Size of the parts in which an upload becomes available to other servers of the store, which can then continue it.',
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
    'Largest number of steps of a job, all phases together.',
  ),
  sequenceLengthMax: integer('RELORA_SEQUENCE_LENGTH_MAX', 8192, 8, 1 << 20, 'Longest sequence in tokens.'),
  vocabularySizeMax: integer('RELORA_VOCABULARY_SIZE_MAX', 524_288, 257, 1 << 20, 'Largest vocabulary.'),
  parametersMax: integer(
    'RELORA_PARAMETERS_MAX',
    20_000_000_000,
    1,
    2 ** 50,
    'Largest number of parameters of a model.',
  ),
  jobMemoryBytesMax: integer(
    'RELORA_JOB_MEMORY_BYTES_MAX',
    0,
    0,
    2 ** 50,
    "Largest estimated memory of a job, in bytes; 0 for the job's share of the machine or container.",
  ),
  jobEventsMax: integer(
    'RELORA_JOB_EVENTS_MAX',
    10_000,
    1000,
    100_000_000,
    'How many of the newest events of a job are never folded, however old; older step events are folded into spans of several steps.',
  ),
  stepWindowSeconds: integer(
    'RELORA_STEP_WINDOW_SECONDS',
    300,
    60,
    2_592_000,
    'Age up to which no step event is folded, so that a watch that was interrupted for up to a minute still gets each of them.',
  ),
  jobLogBytesMax: integer(
    'RELORA_JOB_LOG_BYTES_MAX',
    1 << 20,
    1 << 16,
    1 << 30,
    'How many of the last bytes that a trainer printed are kept at most (at least half as many), for each of the last ten attempts of a job.',
  ),
  metricPointsMax: integer(
    'RELORA_METRIC_POINTS_MAX',
    40_000,
    1000,
    1_000_000,
    'Points in one response of GetMetricHistory or CompareJobs, all series together; each takes 60 bytes.',
  ),
  preparerMemoryBytesMax: integer(
    'RELORA_PREPARER_MEMORY_BYTES_MAX',
    4 * 2 ** 30,
    2 ** 28,
    2 ** 50,
    'Memory in bytes of a process that reads files of clients (data sets, tokenizers, weights) or evaluates a model for EvaluateModel; above it the process is ended.',
  ),
  preparerThreads: integer(
    'RELORA_PREPARER_THREADS',
    0,
    0,
    256,
    'Threads that encode the text of a data set; 0 for as many as there are processors. Fewer are used if RELORA_PREPARER_MEMORY_BYTES_MAX is too small for them.',
  ),
  exportCheckTokens: integer(
    'RELORA_EXPORT_CHECK_TOKENS',
    512,
    0,
    65_536,
    'Tokens on which each export, read back from its files, is compared with the weights of the run; 0 for no comparison.',
  ),
  exportDifferenceFloat32Max: number(
    'RELORA_EXPORT_DIFFERENCE_FLOAT32_MAX',
    1e-4,
    0,
    10,
    'Largest difference of the logits of an export in float32, as root mean square over the spread of the logits; above it the export fails.',
  ),
  exportDifferenceFloat16Max: number(
    'RELORA_EXPORT_DIFFERENCE_FLOAT16_MAX',
    0.01,
    0,
    10,
    'Largest difference of the logits of an export in float16, as root mean square over the spread of the logits; above it the export fails.',
  ),
  exportDifferenceBfloat16Max: number(
    'RELORA_EXPORT_DIFFERENCE_BFLOAT16_MAX',
    0.05,
    0,
    10,
    'Largest difference of the logits of an export in bfloat16, as root mean square over the spread of the logits; above it the export fails.',
  ),
  exportDifferenceQ8Max: number(
    'RELORA_EXPORT_DIFFERENCE_Q8_0_MAX',
    0.1,
    0,
    10,
    'Largest difference of the logits of an export in q8_0, as root mean square over the spread of the logits; above it the export fails.',
  ),
  mixtureDatasetsMax: integer(
    'RELORA_MIXTURE_DATASETS_MAX',
    32,
    2,
    256,
    'Data sets in the mixture of one job; each has its own metrics.',
  ),
  comparedJobsMax: integer(
    'RELORA_COMPARED_JOBS_MAX',
    16,
    2,
    64,
    'Jobs in one comparison, which reads the journal of each.',
  ),

  heartbeatSeconds: number(
    'RELORA_HEARTBEAT_SECONDS',
    10,
    0.1,
    3600,
    'Time without an event after which a watch sends a heartbeat; keep it shorter than the idle limit of proxies.',
  ),
  trainerSilenceSeconds: number(
    'RELORA_TRAINER_SILENCE_SECONDS',
    60,
    0.5,
    86_400,
    'Time without a message after which a trainer is taken for hung; a trainer that computes sends messages, however long the computation takes.',
  ),
  trainerBusySeconds: number(
    'RELORA_TRAINER_BUSY_SECONDS',
    3600,
    1,
    604_800,
    'Time in a single computation after which a trainer is taken for hung; set it longer than the longest micro-batch.',
  ),
  trainerGraceSeconds: number(
    'RELORA_TRAINER_GRACE_SECONDS',
    20,
    0.1,
    3600,
    'Time that a trainer has, after its micro-batch, to save a checkpoint and stop before it is killed; when a job is cancelled, from the request on.',
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
    'Time to wait after a crash; it doubles with every further crash without progress, up to 60 times this value.',
  ),
  tokenizerCpuSeconds: number(
    'RELORA_TOKENIZER_CPU_SECONDS',
    60,
    1,
    86_400,
    'Processor time in which a tokenizer.json must load and encode a line of text before it is accepted.',
  ),
  taskTimeoutSeconds: number(
    'RELORA_TASK_TIMEOUT_SECONDS',
    600,
    1,
    86_400,
    'Longest time of a task for a client, such as generating a text, showing a data set or finding documents, and of measuring the devices.',
  ),
  tasksMax: integer(
    'RELORA_TASKS_MAX',
    2,
    2,
    64,
    'Child processes for everything but training (data sets, exports, evaluations, texts) at the same time; at most one of them prepares data.',
  ),
  shutdownSeconds: number(
    'RELORA_SHUTDOWN_SECONDS',
    25,
    1,
    3600,
    'Time from SIGTERM to the end of the server; the default is below the 30 s that Kubernetes waits.',
  ),

  undeleteSeconds: number(
    'RELORA_UNDELETE_SECONDS',
    7 * 86_400,
    0,
    10 * 365 * 86_400,
    'Time in which a deletion can be undone; after it the space is freed.',
  ),
  cleanupSeconds: number(
    'RELORA_CLEANUP_SECONDS',
    300,
    0.1,
    86_400,
    'Time between two searches for what can be removed from the disk.',
  ),
  ...retention('job', 'JOB', 0, 'jobs that have ended', 'Others are deleted as by DeleteJob.'),
  ...retention(
    'checkpoint',
    'CHECKPOINT',
    0,
    'checkpoints of each ended job',
    'The newest good one always stays.',
  ),
  ...retention('upload', 'UPLOAD', 7, 'abandoned uploads and failed data sets', 'Others are deleted.'),

  freeDiskBytesMin: integer(
    'RELORA_FREE_DISK_BYTES_MIN',
    512 * 2 ** 20,
    0,
    2 ** 50,
    'Free disk space below which no job starts and no upload is received.',
  ),
  storeReserveBytes: integer(
    'RELORA_STORE_RESERVE_BYTES',
    4 * 2 ** 20,
    0,
    2 ** 30,
    'Size of a reserve file, which is deleted if a full disk would prevent opening or closing the store; 0 for none.',
  ),
  storeCheckBytesMax: integer(
    'RELORA_STORE_CHECK_BYTES_MAX',
    256 * 2 ** 20,
    0,
    2 ** 50,
    'A store file up to this size is checked completely when it is opened; in a larger one everything but the history of steps, so that the server starts within seconds.',
  ),
  webhooksMax: integer(
    'RELORA_WEBHOOKS_MAX',
    32,
    0,
    10_000,
    'Webhooks of a tenant; with 0 none can be created, and those that exist are still served.',
  ),
  webhookNetworks: {
    variable: 'RELORA_WEBHOOK_NETWORKS',
    default: '',
    range: 'addresses or networks such as 10.1.0.0/16 with `,` between them',
    reason:
      'Private networks that webhooks may reach in addition to public addresses; by default none, so that nobody can make the server call machines that only it can reach. With 127.0.0.0/8, also http:// to this machine is allowed.',
    parse: parseNetworks,
  } satisfies Setting<readonly string[]>,
  webhookCa: file(
    'RELORA_WEBHOOK_CA',
    'Certificate authority in PEM that is accepted for receivers of webhooks, in addition to the usual ones; none by default.',
  ),
  webhookSeconds: number(
    'RELORA_WEBHOOK_SECONDS',
    15,
    0.1,
    300,
    'Time limit for sending a message to a webhook, from the look-up of the host name to the response.',
  ),
  webhookRetrySeconds: number(
    'RELORA_WEBHOOK_RETRY_SECONDS',
    5,
    0.01,
    3600,
    'Time to wait after the first failed attempt to send a message; each further wait is four times as long, up to six hours.',
  ),
  webhookAttemptsMax: integer(
    'RELORA_WEBHOOK_ATTEMPTS_MAX',
    10,
    1,
    100,
    'Attempts to send a message, after which it becomes a dead letter; with the default waits that is after about 20 hours.',
  ),
  webhookPendingMax: integer(
    'RELORA_WEBHOOK_PENDING_MAX',
    10_000,
    1,
    10_000_000,
    'Messages of a webhook that may wait to be sent; above that, events wait in the journal.',
  ),
  webhookDeadMax: integer(
    'RELORA_WEBHOOK_DEAD_MAX',
    1000,
    0,
    1_000_000,
    'How many dead letters of a webhook are kept; the newest are.',
  ),
  webhookBodyBytesMax: integer(
    'RELORA_WEBHOOK_BODY_BYTES_MAX',
    262_144,
    1024,
    4 << 20,
    'Longest message of a webhook in bytes; a message that would be longer has no event, which WatchJob gives by its number.',
  ),
  tensorBoardFolder: optionalFolder(
    'RELORA_TENSORBOARD_FOLDER',
    'Folder for TensorBoard, into which the curves of jobs are also written, with a folder for each job; none by default.',
  ),
  mlflowUrl: urlSetting(
    'RELORA_MLFLOW_URL',
    'MLflow server to which the curves of jobs are also sent; none by default.',
    'http:// or https:// address',
    (value) =>
      URL.canParse(value) && /^https?:$/.test(new URL(value).protocol) ? new URL(value) : undefined,
  ),
  mlflowExperiment: text(
    'RELORA_MLFLOW_EXPERIMENT',
    'relora',
    'MLflow experiment of jobs that do not name one with the label `mlflow.experiment`.',
  ),
  mlflowTokenFile: file(
    'RELORA_MLFLOW_TOKEN_FILE',
    'File with the token for the MLflow server, if it requires one.',
  ),
  auditFile: file(
    'RELORA_AUDIT_FILE',
    'File to which every entry of the audit log is also appended as a line of JSON; none by default.',
  ),
  auditDays: number(
    'RELORA_AUDIT_DAYS',
    365,
    0,
    36_500,
    'How long entries of the audit log are kept; 0 to keep them forever.',
  ),
  usageDays: number(
    'RELORA_USAGE_DAYS',
    1096,
    0,
    36_500,
    'How long the recorded use of jobs (relora usage) is kept, also of jobs that were deleted; 0 to keep them forever.',
  ),
  logLevel: choice(
    'RELORA_LOG_LEVEL',
    'info',
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    'Lowest level of messages that are logged.',
  ),
  reflection: onOff(
    'RELORA_REFLECTION',
    true,
    'Whether the server supports gRPC reflection, with which tools such as grpcurl need no .proto files.',
  ),
} as const satisfies Record<string, Setting<unknown>>;

/** The settings in force. */
export type Config = {
  readonly [Name in keyof typeof settings]: ReturnType<(typeof settings)[Name]['parse']>;
};

export interface Address {
  host: string;
  port: number;
}

/** Everything that is wrong with the settings, one line each. */
export class ConfigInvalid extends Error {
  override name = 'ConfigInvalid';
  constructor(readonly problems: string[]) {
    super(problems.join('\n'));
  }
}

/** Variables of the command line and the SDK: they are often set in the shell that starts the server, too. */
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
  // Settings that are valid one by one can still contradict each other.
  const contradictions = contradictionsOf(config as unknown as Config);
  if (contradictions.length > 0) throw new ConfigInvalid(contradictions);
  return config as unknown as Config;
}

/** Removes the login: an address may have a password before its last @, which must not get into a message. */
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
  if (config.nccl === 'on' && config.sandbox === 'required')
    problems.push(
      'RELORA_NCCL=on needs RELORA_SANDBOX=auto or off: NCCL connects the processes of a job by sockets',
    );
  if (config.pageBytesMax > config.messageBytesMax)
    problems.push('RELORA_PAGE_BYTES_MAX must be at most RELORA_MESSAGE_BYTES_MAX: a page is one message');
  return problems;
}

/** Missing protection of addresses that other machines can reach, unless the operator explicitly accepted that. */
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
  note: string,
): Record<`${Name}RetentionDays` | `${Name}RetentionCount` | `${Name}RetentionBytes`, Setting<number>> {
  return {
    [`${name}RetentionDays`]: number(
      `RELORA_${word}_RETENTION_DAYS`,
      days,
      0,
      36_500,
      `Days to keep ${what}; 0 to keep them forever. ${note}`,
    ),
    [`${name}RetentionCount`]: integer(
      `RELORA_${word}_RETENTION_COUNT`,
      0,
      0,
      1_000_000,
      `How many of the newest ${what} to keep; 0 for all. ${note}`,
    ),
    [`${name}RetentionBytes`]: integer(
      `RELORA_${word}_RETENTION_BYTES`,
      0,
      0,
      2 ** 50,
      `Bytes of the newest ${what} to keep; 0 for no limit. ${note}`,
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
    range: 'https:// address; http:// only on this machine',
    reason,
    parse: (value) => (value === '' ? '' : parseUrl(value)),
  };
}

/** As it was written, because issuers are compared letter by letter. */
function parseUrl(text: string): string {
  if (!isSafeAddress(text)) throw new SettingProblem('an https:// address (http:// only on this machine)');
  return text;
}

/** Whether nobody on the network can change what is read from an address. */
export function isSafeAddress(text: string): boolean {
  const { protocol, hostname } = URL.canParse(text) ? new URL(text) : { protocol: '', hostname: '' };
  return protocol === 'https:' || (protocol === 'http:' && isLoopback(hostname));
}

/** Whether only this machine can reach an address. */
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

/** Null if it is not set. */
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
