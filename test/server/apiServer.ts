import {
  type Any,
  ArtifactServiceDefinition,
  BadRequest,
  DatasetServiceDefinition,
  ErrorInfo,
  type JobSpec,
  ModelServiceDefinition,
  PreconditionFailure,
  ResourceInfo,
  RetryInfo,
  RpcStatus,
  ServerServiceDefinition,
  TrainingServiceDefinition,
  WebhookServiceDefinition,
  WeightsServiceDefinition,
  type DeepPartial,
  type UploadDatasetHeader,
  type UploadDatasetRequest,
} from '@relora/sdk/contract';
import { createHash } from 'node:crypto';
import { ClientError, createChannel, createClient, type CallOptions, type Client } from 'nice-grpc';
import { onTestFinished } from 'vitest';
import type { Authenticate } from '../../server/dist/access/principal.js';
import { Confinement } from '../../server/dist/trainer/confinement.js';
import { AuditLog } from '../../server/dist/audit/auditLog.js';
import { DeviceCatalog } from '../../server/dist/api/deviceCatalog.js';
import { PageTokens } from '../../server/dist/api/pageToken.js';
import type { ApiParts } from '../../server/dist/api/parts.js';
import { streamPlaces } from '../../server/dist/api/places.js';
import { eventJson } from '../../server/dist/api/eventJson.js';
import { JournalReaders } from '../../server/dist/jobs/journalReaders.js';
import { Reachable } from '../../server/dist/webhooks/reachable.js';
import { WebhookSender } from '../../server/dist/webhooks/webhookSender.js';
import { WebhookStore } from '../../server/dist/webhooks/webhookStore.js';
import { serveApi, serviceNames } from '../../server/dist/api/serveApi.js';
import { Health } from '../../server/dist/grpc/health.js';
import { JobImports } from '../../server/dist/archive/jobImports.js';
import { WeightsUploads } from '../../server/dist/weights/weightsUploads.js';
import { AllowedFolders } from '../../server/dist/datasets/allowedFolders.js';
import { DatasetUploads } from '../../server/dist/datasets/datasetUploads.js';
import { createMetrics } from '../../server/dist/metrics/metrics.js';
import { Slots } from '../../server/dist/trainer/slots.js';
import type { DeviceDescription } from '../../server/dist/jobs/jobDevices.js';
import { TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { openParts, readyDataset, scriptedTrainer, type Parts } from './parts.js';

export type Api = Awaited<ReturnType<typeof openApi>>;

/** Serves the API over the durable half of a server, on a free port, with clients for each service. */
export async function openApi(
  settings: Record<string, string> = {},
  options: {
    deadlineSeconds?: number;
    parts?: Parts;
    devices?: DeviceDescription[];
    /** Those of other servers. */
    elsewhere?: DeviceDescription[];
    authenticate?: Authenticate;
  } = {},
) {
  const parts = options.parts ?? (await openParts(settings));
  const stopping = new AbortController();
  const { log, config } = parts;
  const tasks = new TaskRunner(config, log, scriptedTrainer);
  const quiet = { loadRatio: () => 0, trainings: () => ({ running: 0, begun: 0 }) };
  const reached = { read: async () => [], write: async () => {} };
  const found = {
    describeDevices: async () => ({
      native: '',
      devices: options.devices ?? [device],
      problems: [],
      libraries: [],
      nccl: null,
    }),
    compileKernels: async () => null,
  };
  const devices = new DeviceCatalog(
    ...([found, log, stopping.signal, quiet, reached] as const),
    async () => options.elsewhere ?? [],
  );
  const metrics = createMetrics();
  const reachable = new Reachable(config.webhookNetworks);
  const readers = new JournalReaders(parts.db, parts.leases);
  const webhooks = new WebhookStore(parts.db, parts.feed, readers, () => parts.leases.now());
  const onStoreFailure = () => {};
  const webhookSender = new WebhookSender({
    ...{ ...parts, webhooks, reachable, readers, metrics, toJson: eventJson(), onStoreFailure },
  });
  const apiParts: ApiParts = {
    ...parts,
    webhooks,
    webhookSender,
    reachable,
    tasks,
    devices,
    slots: new Slots(config, devices),
    confinement: new Confinement(config),
    uploads: new DatasetUploads(parts.datasets, parts.stage, config),
    weightsUploads: new WeightsUploads(parts.weights, config),
    imports: new JobImports(config.dataFolder, config),
    allowedFolders: new AllowedFolders(config.allowedFolders),
    audit: new AuditLog(parts.db, log, config.auditFile),
    metrics,
    ...streamPlaces(config),
    pageTokens: new PageTokens(parts.storeInfo.pageTokenKey),
    identity: parts.identity,
    version: '1.2.3',
    startTimeMs: Date.now(),
    stopping: stopping.signal,
  };
  const health = new Health(serviceNames, stopping.signal);
  const server = serveApi(apiParts, health, options);
  const port = await server.listen({ host: '127.0.0.1', port: 0 });
  const channel = createChannel(`127.0.0.1:${port}`);
  onTestFinished(async () => {
    channel.close();
    server.close();
    await tasks.stop();
  });
  return {
    parts,
    metrics,
    webhookSender,
    stopping,
    grpc: server,
    address: `127.0.0.1:${port}`,
    training: createClient(TrainingServiceDefinition, channel) as Client<typeof TrainingServiceDefinition>,
    artifacts: createClient(ArtifactServiceDefinition, channel) as Client<typeof ArtifactServiceDefinition>,
    datasets: createClient(DatasetServiceDefinition, channel) as Client<typeof DatasetServiceDefinition>,
    model: createClient(ModelServiceDefinition, channel) as Client<typeof ModelServiceDefinition>,
    weights: createClient(WeightsServiceDefinition, channel) as Client<typeof WeightsServiceDefinition>,
    webhooks: createClient(WebhookServiceDefinition, channel) as Client<typeof WebhookServiceDefinition>,
    server: createClient(ServerServiceDefinition, channel) as Client<typeof ServerServiceDefinition>,
  };
}

const device = {
  backend: 'native' as const,
  isDefault: true,
  model: 'A processor',
  instructionSet: 'avx512bf16',
  threadCount: 2,
  memoryBytes: 2 ** 34,
  float32Flops: 1e11,
  bfloat16Flops: 2e11,
  int8Flops: 4e11,
  memoryBytesPerSecond: 1e10,
  autoPrecision: 'bfloat16' as const,
  uuid: '',
  computeCapability: '',
};

/** A small job on the data set of readyDataset; `script` controls the scripted trainer. */
export function jobSpec(script = '', changes: DeepPartial<JobSpec> = {}): DeepPartial<JobSpec> {
  return {
    model: {
      config: {
        hiddenSize: 16,
        intermediateSize: 32,
        numHiddenLayers: 1,
        numAttentionHeads: 2,
        maxPositionEmbeddings: 32,
      },
    },
    dataset: 'datasets/text',
    stepCount: 20,
    warmStart: { stepCount: 0 },
    adapter: { rank: 4, cycleStepCount: 5 },
    batch: { sequenceLength: 8, sequenceCount: 2 },
    checkpoint: { everyStepCount: 5 },
    sample: { prompt: script },
    ...changes,
  };
}

/** A server with a data set, a finished job and its artifact. */
export async function openApiWithArtifact(settings: Record<string, string> = {}) {
  const api = await openApi(settings);
  await readyDataset(api.parts);
  await api.parts.supervisor.start();
  const { job } = await api.training.createJob({ spec: jobSpec() });
  for await (const { event } of api.training.watchJob({ name: job!.name })) if (event!.final) break;
  const { artifacts } = await api.artifacts.listArtifacts({ parent: job!.name });
  return { api, job: job!.name, artifact: artifacts[0]!.name };
}

export interface Refusal {
  code: number;
  message: string;
  info: ErrorInfo;
  fields: string[];
  badRequest?: BadRequest;
  resource?: ResourceInfo;
  precondition?: PreconditionFailure;
  retry?: RetryInfo;
}

type Call = (options: CallOptions) => Promise<unknown> | AsyncIterable<unknown>;

/** Makes a call that must fail and returns everything in its error. */
export async function refusalOf(call: Call): Promise<Refusal> {
  let bytes: Uint8Array | undefined;
  try {
    const result = call({
      onTrailer: (trailer) => (bytes = trailer.get('grpc-status-details-bin') as Uint8Array | undefined),
    });
    if (Symbol.asyncIterator in result) for await (const _ of result) continue;
    else await result;
  } catch (error) {
    if (!(error instanceof ClientError)) throw error;
    return readRefusal(error.code, error.details, bytes);
  }
  throw new Error('The call was not refused');
}

/** The details of an error, from its trailer `grpc-status-details-bin`. */
export function readRefusal(code: number, message: string, bytes: Uint8Array | undefined): Refusal {
  if (bytes === undefined) throw new Error(`No details with ${code}: ${message}`);
  const status = RpcStatus.decode(bytes);
  const all = <T>(type: string, decode: (value: Uint8Array) => T): T[] =>
    status.details
      .filter((any: Any) => any.typeUrl === `type.googleapis.com/google.rpc.${type}`)
      .map((any) => decode(any.value));
  const infos = all('ErrorInfo', ErrorInfo.decode);
  if (infos.length !== 1 || status.code !== code)
    throw new Error(`Every error has one ErrorInfo and its own code, not ${code}: ${message}`);
  const badRequest = all('BadRequest', BadRequest.decode)[0];
  return {
    code,
    message,
    info: infos[0]!,
    fields: badRequest?.fieldViolations.map(({ field }) => field) ?? [],
    badRequest,
    resource: all('ResourceInfo', ResourceInfo.decode)[0],
    precondition: all('PreconditionFailure', PreconditionFailure.decode)[0],
    retry: all('RetryInfo', RetryInfo.decode)[0],
  };
}

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** The messages of an upload of one file; `chunks` are [offset, bytes]. */
export async function* uploadOf(
  content: Buffer,
  chunks: [number, Buffer][] = [[0, content]],
  header: DeepPartial<UploadDatasetHeader> = {},
): AsyncGenerator<DeepPartial<UploadDatasetRequest>> {
  const file = { fileName: 'tales.txt', sizeBytes: content.length, sha256: sha256(content) };
  yield { header: { datasetId: 'tales', files: [file], ...header } };
  for (const [offsetBytes, data] of chunks) yield { chunk: { fileIndex: 0, offsetBytes, data } };
}
