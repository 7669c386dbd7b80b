import { once, setMaxListeners } from 'node:events';
import { mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino, type Logger } from 'pino';
import { Metadata } from '@grpc/grpc-js';
import { WeightsServiceDefinition } from '@relora/sdk/contract';
import { createClient, Metadata as NiceMetadata, Status, type CallOptions, type Client } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import { sealArtifact } from '../../server/dist/artifacts/sealArtifact.js';
import { openAccess } from '../../server/dist/access/access.js';
import { nobody, type Principal } from '../../server/dist/access/principal.js';
import { readConfig } from '../../server/dist/config.js';
import { errorMiddleware } from '../../server/dist/grpc/middleware.js';
import { serviceErrors, type ErrorReason } from '../../server/dist/errors.js';
import {
  jobSpec,
  openApi,
  openApiWithArtifact,
  readRefusal,
  refusalOf,
  sha256,
  uploadOf,
  type Refusal,
} from './apiServer.js';
import { beginCall, framed, rawCall, rawClient, rawSession, statusOf } from './rawCalls.js';
import {
  claim,
  jobWhen,
  openParts,
  readyDataset,
  registerFiles,
  runSpec,
  submit,
  temporaryFolder,
} from './parts.js';
import { freshDatabase, hasPostgres, stopPostgres } from './postgres.js';
import { runServer } from './runningServer.js';
import { canMakeReadOnly, makeReadOnly } from './readOnly.js';

const text = Buffer.from('Once upon a time there was an adapter of rank four.');
const uuid = '00000000-0000-4000-8000-000000000001';
const modelFiles = ['config.json', 'model.safetensors'].map((fileName) => ({
  fileName,
  sizeBytes: 1,
  sha256: 'a'.repeat(64),
}));
async function* messagesOf<T>(messages: T[]): AsyncGenerator<T> {
  yield* messages;
}
const hasStarted = async (iterator: AsyncIterator<unknown>) => void (await iterator.next());

/** How a call ends if the test writes its HTTP/2 frames. */
async function rawRefusal(call: {
  address?: string;
  path?: string;
  headers?: Record<string, string>;
  body?: Buffer;
  isOpen?: boolean;
}): Promise<Refusal> {
  const { path = '/relora.v1.TrainingService/GetJob', body = framed(Buffer.alloc(0)) } = call;
  const stream = beginCall(await rawSession(call.address ?? (await openApi()).address), path, call.headers);
  if (call.isOpen === true) stream.write(body);
  else stream.end(body);
  const { code, message, details } = (await statusOf(stream))!;
  return readRefusal(code, message, details);
}

/** The import of a job without checkpoints and artifacts. */
function importOf(job: string, record: Buffer) {
  const file = { fileName: 'job.jsonl', sizeBytes: record.length, sha256: sha256(record) };
  const archive = { formatVersion: 1, job, files: [file], sizeBytes: record.length };
  return [{ header: { archive } }, { chunk: { fileIndex: 0, offsetBytes: 0, data: record } }];
}

/** One way to cause each reason, over the wire. */
const provocations: Record<
  Exclude<ErrorReason, 'CALL_CANCELLED' | 'CLIENT_NOT_READING'>,
  () => Promise<Refusal>
> = {
  JOB_SPEC_INVALID: async () => {
    const { training } = await openApi();
    return await refusalOf((options) =>
      training.createJob({ spec: { stepCount: -1 }, labels: { '': 'x' } }, options),
    );
  },
  REQUEST_INVALID: async () => {
    const { training } = await openApi();
    return await refusalOf((options) => training.getJob({ name: '../etc' }, options));
  },
  MESSAGE_UNREADABLE: async () => await rawRefusal({ body: framed(Buffer.from([0x0a, 0x7f])) }),
  MESSAGE_TOO_LARGE: async () => await rawRefusal({ body: Buffer.from([0, 0xff, 0xff, 0xff, 0xff]) }),
  METHOD_UNKNOWN: async () => {
    const { address } = await openApi();
    const { error } = await rawCall(
      rawClient(address),
      '/relora.v1.TrainingService/GetJobs',
      Buffer.alloc(0),
    );
    const details = error!.metadata.get('grpc-status-details-bin')[0] as Buffer;
    return readRefusal(error!.code, error!.details, details);
  },
  ENCODING_UNKNOWN: async () =>
    await rawRefusal({ headers: { 'grpc-encoding': 'br' }, body: framed(Buffer.from([1]), true) }),
  ANSWER_TOO_LARGE: async () => {
    const { datasets, parts } = await openApi({ RELORA_MESSAGE_BYTES_MAX: '1048576' });
    await registerFiles(parts, 8000);
    return await refusalOf((options) => datasets.getDataset({ name: 'datasets/many' }, options));
  },
  NOT_AUTHENTICATED: async () => {
    const { server } = await openApi({}, { authenticate: async () => nobody });
    return await refusalOf((options) => server.getServerInfo({}, options));
  },
  IDENTITY_PROVIDER_AWAY: async () => {
    const settings = readConfig({ RELORA_OIDC_ISSUER: 'http://127.0.0.1:9', RELORA_OIDC_AUDIENCE: 'relora' });
    const { authenticate } = await openAccess(settings, pino({ level: 'silent' }));
    const { server } = await openApi({}, { authenticate });
    const metadata = NiceMetadata({ authorization: 'Bearer a.b.c' });
    return await refusalOf((options) => server.getServerInfo({}, { ...options, metadata }));
  },
  ROLE_TOO_LOW: async () => {
    const viewer: Principal = { name: 'a viewer', tenant: 'default', role: 'viewer' };
    const { training } = await openApi({}, { authenticate: async () => viewer });
    return await refusalOf((options) => training.pauseJob({ name: 'jobs/not-there' }, options));
  },
  SERVICE_UNKNOWN: async () =>
    await rawRefusal({ path: '/grpc.health.v1.Health/Check', body: framed(Buffer.from('\n\u0003tea')) }),
  DOWNLOADS_FULL: async () => {
    const { api, artifact } = await openApiWithArtifact({ RELORA_DOWNLOADS_MAX: '1' });
    const asked = { name: artifact, fileName: 'config.json' };
    // Blocks while opening its file.
    let isOpen = (): void => {};
    const opened = new Promise<void>((resolve) => (isOpen = resolve));
    api.parts.artifacts.openFile = async () => await new Promise(() => isOpen());
    void api.artifacts
      .downloadArtifact(asked)
      [Symbol.asyncIterator]()
      .next()
      .catch(() => {});
    await opened;
    return await refusalOf((options) => api.artifacts.downloadArtifact(asked, options));
  },
  UPLOADS_FULL: async () => {
    const { datasets, weights, parts } = await openApi({ RELORA_UPLOADS_MAX: '1' });
    let release = (): void => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    async function* slow() {
      yield* uploadOf(text, [[0, text.subarray(0, 5)]]);
      await held;
    }
    const first = datasets.uploadDataset(slow()).catch(() => {});
    while ((await parts.datasets.find('tales'))?.files[0]?.receivedBytes !== 5)
      await new Promise((resolve) => setTimeout(resolve, 5));
    const refusal = await refusalOf((options) =>
      weights.uploadWeights(messagesOf([{ header: { files: modelFiles } }]), options),
    );
    release();
    await first;
    return refusal;
  },
  FILES_FULL: async () => {
    const { api, artifact } = await openApiWithArtifact();
    api.parts.artifacts.openFile = async () => {
      throw Object.assign(new Error('EMFILE: too many open files'), { code: 'EMFILE' });
    };
    return await refusalOf((options) =>
      api.artifacts.downloadArtifact({ name: artifact, fileName: 'config.json' }, options),
    );
  },
  CONNECTIONS_FULL: async () => {
    const { address } = await openApi({ RELORA_CONNECTIONS_MAX: '1' });
    const watch = beginCall(await rawSession(address), '/grpc.health.v1.Health/Watch');
    watch.end(framed(Buffer.alloc(0)));
    await once(watch, 'response');
    return await rawRefusal({ address });
  },
  DEADLINE_PASSED: async () =>
    await rawRefusal({ headers: { 'grpc-timeout': '50m' }, body: Buffer.alloc(0), isOpen: true }),
  CLIENT_SILENT: async () => {
    const { address } = await openApi({ RELORA_REQUEST_SILENCE_SECONDS: '0.1' });
    return await rawRefusal({ address, body: Buffer.alloc(0), isOpen: true });
  },
  PAGE_TOKEN_INVALID: async () => {
    const { training } = await openApi();
    return await refusalOf((options) => training.listJobs({ pageToken: 'AAAA' }, options));
  },
  JOB_NOT_FOUND: async () => {
    const { training } = await openApi();
    return await refusalOf((options) => training.watchJob({ name: 'jobs/nobody' }, options));
  },
  CHECKPOINT_NOT_FOUND: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    await training.cancelJob({ name: job!.name });
    return await refusalOf((options) => training.forkJob({ name: job!.name }, options));
  },
  DATASET_NOT_FOUND: async () => {
    const { training } = await openApi();
    return await refusalOf((options) => training.createJob({ spec: jobSpec() }, options));
  },
  WEBHOOK_NOT_FOUND: async () => {
    const { webhooks } = await openApi();
    return await refusalOf((options) => webhooks.testWebhook({ name: 'webhooks/none' }, options));
  },
  WEBHOOK_EXISTS: async () => {
    const { webhooks } = await openApi();
    const wanted = { webhookId: 'hook', url: 'https://example.com/' };
    await webhooks.createWebhook(wanted);
    return await refusalOf((options) => webhooks.createWebhook(wanted, options)); // with its own idempotency key
  },
  TOO_MANY_WEBHOOKS: async () => {
    const { webhooks } = await openApi({ RELORA_WEBHOOKS_MAX: '0' });
    return await refusalOf((options) => webhooks.createWebhook({ url: 'https://example.com/' }, options));
  },
  ARTIFACT_NOT_FOUND: async () => {
    const { artifacts } = await openApi();
    return await refusalOf((options) =>
      artifacts.downloadArtifact({ name: 'jobs/nobody/artifacts/merged-model-1', fileName: 'x' }, options),
    );
  },
  ARTIFACT_FILE_NOT_FOUND: async () => {
    const { api, artifact } = await openApiWithArtifact();
    return await refusalOf((options) =>
      api.artifacts.downloadArtifact({ name: artifact, fileName: '../../../store.db' }, options),
    );
  },
  ARTIFACT_NOT_READY: async () => {
    const { api, job } = await openApiWithArtifact();
    const { artifact } = await api.artifacts.exportWeights({ job, format: 'EXPORT_FORMAT_GGUF' });
    return await refusalOf((options) =>
      api.artifacts.downloadArtifact({ name: artifact!.name, fileName: 'model.gguf' }, options),
    );
  },
  ARTIFACT_FORMAT_WRONG: async () => {
    const { model, parts } = await openApi();
    await submit(parts);
    const { id, attempt } = await claim(parts);
    const files = [{ fileName: 'model.gguf', sizeBytes: 1, sha256: 'a'.repeat(64) }];
    await sealArtifact(
      parts.attempts,
      { jobId: id, attempt },
      { id: 'gguf-1', format: 'gguf', weightType: 'float32', castErrorMax: 0, cycle: 1, step: 1, files },
    );
    return await refusalOf((options) =>
      model.generateText({ model: `jobs/${id}/artifacts/gguf-1` }, options),
    );
  },
  WEIGHTS_NOT_FOUND: async () => {
    const { weights } = await openApi();
    return await refusalOf((options) => weights.getWeights({ name: 'weights/none' }, options));
  },
  WEIGHTS_EXISTS: async () => {
    const { weights, parts } = await openApi();
    await parts.weights.register({ weightsId: 'llama', displayName: '', files: modelFiles });
    const files = modelFiles.map((file) => ({ ...file, sizeBytes: 2 }));
    return await refusalOf((options) =>
      weights.uploadWeights(messagesOf([{ header: { weightsId: 'llama', files } }]), options),
    );
  },
  WEIGHTS_INVALID: async () => {
    // On a real server, whose task reads the files.
    const { channel } = await runServer();
    const weights: Client<typeof WeightsServiceDefinition> = createClient(WeightsServiceDefinition, channel);
    const data = Buffer.from('{}');
    const upload = [
      { header: { files: modelFiles.map((file) => ({ ...file, sizeBytes: 2, sha256: sha256(data) })) } },
      ...[0, 1].map((fileIndex) => ({ chunk: { fileIndex, offsetBytes: 0, data } })),
    ];
    return await refusalOf((options) => weights.uploadWeights(messagesOf(upload), options));
  },
  WEIGHTS_IN_USE: async () => {
    const { weights, parts } = await openApi();
    await parts.weights.register({ weightsId: 'llama', displayName: '', files: modelFiles });
    await submit(parts, { spec: { ...runSpec(), baseWeightsName: 'weights/llama' } });
    return await refusalOf((options) => weights.deleteWeights({ name: 'weights/llama' }, options));
  },
  JOB_EXISTS: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    await training.createJob({ jobId: 'my-job', spec: jobSpec() });
    return await refusalOf((options) => training.createJob({ jobId: 'my-job', spec: jobSpec() }, options));
  },
  JOB_ARCHIVE_INVALID: async () => {
    const { training } = await openApi();
    const upload = importOf('jobs/no-record', Buffer.from('{}\n'));
    return await refusalOf((options) => training.importJob(messagesOf(upload), options));
  },
  JOB_ARCHIVE_DATA: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ jobId: 'my-job', spec: jobSpec() });
    await training.cancelJob({ name: job!.name });
    const pieces: Uint8Array[] = [];
    for await (const { data } of training.exportJob({ name: job!.name })) pieces.push(data!);
    const record = Buffer.concat(pieces).toString();
    const other = record.replace(/"manifestSha256":"[0-9a-f]{64}"/, `"manifestSha256":"${'0'.repeat(64)}"`);
    const upload = importOf('jobs/other-job', Buffer.from(other));
    return await refusalOf((options) => training.importJob(messagesOf(upload), options));
  },
  DATASET_EXISTS: async () => {
    const { datasets } = await openApi();
    await datasets.uploadDataset(uploadOf(text));
    return await refusalOf((options) => datasets.uploadDataset(uploadOf(Buffer.from('other')), options));
  },
  REQUEST_ID_REUSED: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    await training.createJob({ requestId: uuid, spec: jobSpec() });
    return await refusalOf((options) =>
      training.createJob({ requestId: uuid, spec: jobSpec('', { seed: 1 }) }, options),
    );
  },
  JOB_STATE_WRONG: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    return await refusalOf((options) => training.resumeJob({ name: job!.name }, options));
  },
  JOB_CHANGED: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    await training.pauseJob({ name: job!.name });
    return await refusalOf((options) => training.cancelJob({ name: job!.name, etag: job!.etag }, options));
  },
  DATASET_NOT_READY: async () => {
    const { datasets, training } = await openApi();
    await datasets.uploadDataset(uploadOf(text));
    return await refusalOf((options) =>
      training.createJob({ spec: jobSpec('', { dataset: 'datasets/tales' }) }, options),
    );
  },
  MODEL_NOT_READY: async () => {
    const { training, model, parts } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    return await refusalOf((options) => model.generateText({ model: job!.name }, options));
  },
  MODEL_UNUSABLE: async () => {
    const { api, artifact } = await openApiWithArtifact();
    return await refusalOf((options) => api.model.generateText({ model: artifact, prompt: 'fail' }, options));
  },
  SEQUENCE_BEYOND_END: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    return await refusalOf((options) => training.watchJob({ name: job!.name, afterSequence: 1000 }, options));
  },
  STORE_CHANGED: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    return await refusalOf((options) =>
      training.watchJob({ name: job!.name, afterSequence: 1, storeId: 'another' }, options),
    );
  },
  OFFSET_BEYOND_END: async () => {
    const { api, artifact } = await openApiWithArtifact();
    return await refusalOf((options) =>
      api.artifacts.downloadArtifact({ name: artifact, fileName: 'config.json', offsetBytes: 11 }, options),
    );
  },
  ARTIFACT_DAMAGED: async () => {
    const { api, job, artifact } = await openApiWithArtifact();
    truncateSync(join(api.parts.dataFolder, job, 'artifacts', artifact.split('/').at(-1)!, 'config.json'), 5);
    return await refusalOf((options) =>
      api.artifacts.downloadArtifact({ name: artifact, fileName: 'config.json' }, options),
    );
  },
  STORED_FILES_DAMAGED: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts); // its files are not prepared
    const { job } = await training.createJob({ spec: jobSpec() });
    await training.cancelJob({ name: job!.name });
    const request = { name: job!.name, withDatasets: true };
    return await refusalOf((options) => training.exportJob(request, options));
  },
  UPLOAD_OFFSET_WRONG: async () => {
    const { datasets } = await openApi();
    return await refusalOf((options) =>
      datasets.uploadDataset(uploadOf(text, [[7, text.subarray(7)]]), options),
    );
  },
  UPLOAD_TOO_LONG: async () => {
    const { datasets } = await openApi();
    return await refusalOf((options) =>
      datasets.uploadDataset(uploadOf(text, [[0, Buffer.concat([text, text])]]), options),
    );
  },
  UPLOAD_INCOMPLETE: async () => {
    const { datasets } = await openApi();
    return await refusalOf((options) =>
      datasets.uploadDataset(uploadOf(text, [[0, text.subarray(0, 5)]]), options),
    );
  },
  UPLOAD_HASH_WRONG: async () => {
    const { datasets } = await openApi();
    return await refusalOf((options) =>
      datasets.uploadDataset(uploadOf(text, [[0, Buffer.alloc(text.length)]]), options),
    );
  },
  UPLOAD_BUSY: async () => {
    const { datasets, parts } = await openApi();
    let release = (): void => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    async function* slow() {
      yield* uploadOf(text, [[0, text.subarray(0, 5)]]);
      await held;
    }
    const first = datasets.uploadDataset(slow()).catch((error: unknown) => error);
    // Its first bytes on disk show that the first upload has locked the data set.
    while ((await parts.datasets.find('tales'))?.files[0]?.receivedBytes !== 5)
      await new Promise((resolve) => setTimeout(resolve, 5));
    const refusal = await refusalOf((options) => datasets.uploadDataset(uploadOf(text), options));
    release();
    await first;
    return refusal;
  },
  JOB_TOO_LARGE: async () => {
    const { training, parts } = await openApi({ RELORA_JOB_MEMORY_BYTES_MAX: '1000000' });
    await readyDataset(parts);
    return await refusalOf((options) => training.createJob({ spec: jobSpec() }, options));
  },
  DISK_FULL: async () => {
    const { datasets } = await openApi({ RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) });
    return await refusalOf((options) => datasets.uploadDataset(uploadOf(text), options));
  },
  FOLDER_UNWRITABLE: async () => {
    const { datasets, parts } = await openApi();
    mkdirSync(join(parts.dataFolder, 'datasets'));
    makeReadOnly(join(parts.dataFolder, 'datasets'));
    return await refusalOf((options) => datasets.uploadDataset(uploadOf(text), options));
  },
  DISK_BROKEN: async () => {
    const { training, parts } = await openApi();
    parts.store.find = async () => {
      throw Object.assign(new Error('disk I/O error'), { code: 'SQLITE_IOERR_READ' });
    };
    return await refusalOf((options) => training.getJob({ name: 'jobs/nobody' }, options));
  },
  STORE_AWAY: async () => {
    const url = await freshDatabase();
    const { training } = await openApi({}, { parts: await openParts({}, temporaryFolder(), undefined, url) });
    await stopPostgres();
    return await refusalOf((options) => training.getJob({ name: 'jobs/nobody' }, options));
  },
  JOB_DELETED: async () => {
    const { api, job } = await openApiWithArtifact();
    await api.training.deleteJob({ name: job });
    return await refusalOf((options) => api.training.forkJob({ name: job }, options));
  },
  JOB_IN_USE: async () => {
    const { api, job } = await openApiWithArtifact();
    await api.artifacts.exportWeights({ job, format: 'EXPORT_FORMAT_GGUF' });
    return await refusalOf((options) => api.training.deleteJob({ name: job }, options));
  },
  DATASET_DELETED: async () => {
    const { training, datasets, parts } = await openApi();
    await readyDataset(parts);
    await datasets.deleteDataset({ name: 'datasets/text' });
    return await refusalOf((options) => training.createJob({ spec: jobSpec() }, options));
  },
  DATASET_NAME_KEPT: async () => {
    const { training, datasets, parts } = await openApi({ RELORA_UNDELETE_SECONDS: '0' });
    await readyDataset(parts, 'tales');
    const { job } = await training.createJob({ spec: jobSpec('', { dataset: 'datasets/tales' }) });
    await training.cancelJob({ name: job!.name });
    await datasets.deleteDataset({ name: 'datasets/tales' });
    return await refusalOf((options) => datasets.uploadDataset(uploadOf(text), options));
  },
  DATASET_IN_USE: async () => {
    const { training, datasets, parts } = await openApi();
    await readyDataset(parts);
    await training.createJob({ spec: jobSpec() });
    return await refusalOf((options) => datasets.deleteDataset({ name: 'datasets/text' }, options));
  },
  QUEUE_FULL: async () => {
    const { training, parts } = await openApi({ RELORA_QUEUE_JOBS_MAX: '1' });
    await readyDataset(parts);
    await training.createJob({ spec: jobSpec() });
    return await refusalOf((options) => training.createJob({ spec: jobSpec() }, options));
  },
  QUOTA_EXCEEDED: async () => {
    const quotaFile = join(temporaryFolder(), 'quotas.json');
    writeFileSync(quotaFile, JSON.stringify({ default: { queuedJobs: 1 } }), { mode: 0o600 });
    const { training, parts } = await openApi({ RELORA_QUOTA_FILE: quotaFile });
    await readyDataset(parts);
    await training.createJob({ spec: jobSpec() });
    return await refusalOf((options) => training.createJob({ spec: jobSpec() }, options));
  },
  WATCHERS_FULL: async () => {
    const { training, parts } = await openApi({ RELORA_WATCHERS_MAX: '1' });
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    await hasStarted(training.watchJob({ name: job!.name })[Symbol.asyncIterator]());
    return await refusalOf((options) => training.watchJob({ name: job!.name }, options));
  },
  TASKS_FULL: async () => {
    const { api, artifact } = await openApiWithArtifact();
    const leave = new AbortController();
    setMaxListeners(0, leave.signal);
    // Two run and 32 wait: one of 35 is refused.
    const refusals = Array.from({ length: 35 }, () =>
      refusalOf((options: CallOptions) =>
        api.model.generateText({ model: artifact, prompt: 'hang' }, { ...options, signal: leave.signal }),
      ),
    );
    const refused = await Promise.any(refusals);
    leave.abort();
    await Promise.allSettled(refusals);
    return refused;
  },
  METADATA_TOO_LARGE: async () => {
    const { server } = await openApi();
    return await refusalOf((options) =>
      server.getServerInfo({}, { ...options, metadata: NiceMetadata({ note: 'x'.repeat(9000) }) }),
    );
  },
  DEVICE_UNAVAILABLE: async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    return await refusalOf((options) =>
      training.createJob({ spec: jobSpec('', { device: 'tensorflow' }) }, options),
    );
  },
  TASK_CRASHED: async () => {
    const { api, artifact } = await openApiWithArtifact();
    return await refusalOf((options) =>
      api.model.generateText({ model: artifact, prompt: 'crash' }, options),
    );
  },
  DEADLINE_EXCEEDED: async () => {
    const { training, parts } = await openApi({}, { deadlineSeconds: 0.5 });
    await readyDataset(parts);
    await parts.supervisor.start();
    // Not by a call, which might take as long on a busy machine.
    const { id } = await submit(parts, { spec: runSpec('deaf', { stepCount: 100_000 }) });
    await jobWhen(parts, id, ({ state }) => state === 'running');
    return await refusalOf((options) => training.pauseJob({ name: `jobs/${id}` }, options));
  },
  SERVER_STOPPING: async () => {
    const { training, parts, stopping } = await openApi();
    await readyDataset(parts);
    const { job } = await training.createJob({ spec: jobSpec() });
    return await refusalOf(async function* (options) {
      for await (const response of training.watchJob({ name: job!.name }, options)) {
        yield response;
        stopping.abort();
      }
    });
  },
  INTERNAL_ERROR: async () => {
    const { training, parts } = await openApi();
    await parts.close();
    return await refusalOf((options) => training.getJob({ name: 'jobs/nobody' }, options));
  },
};

describe('every error of the catalog reaches a client with its code, reason and details', () => {
  for (const [reason, provoke] of Object.entries(provocations)) {
    const isHere =
      reason === 'STORE_AWAY' ? hasPostgres : reason === 'FOLDER_UNWRITABLE' ? canMakeReadOnly : true;
    it.skipIf(!isHere)(reason, async () => {
      const refusal = await provoke();
      const entry = serviceErrors[reason as ErrorReason];
      expect(refusal).toMatchObject({ code: entry.status, info: { reason, domain: 'relora' } });
      expect(refusal.message).not.toMatch(/\n\s+at |\/src\/|select /);
      expect(refusal.retry?.retryDelay?.seconds).toBe(entry.retrySeconds);
      expect(refusal.fields.length > 0).toBe('fields' in entry);
      expect(refusal.resource !== undefined).toBe('resource' in entry);
      expect(refusal.precondition !== undefined).toBe('precondition' in entry);
    });
  }
});

it('the time limit of calls does not end those that wait for a task: it has a limit of its own', async () => {
  const { datasets, parts } = await openApi({}, { deadlineSeconds: 0.001 });
  await readyDataset(parts);
  expect(await datasets.previewDataset({ name: 'datasets/text' })).toEqual({ tokens: [] });
});

describe('an error', () => {
  it('names every bad field at once, with what was expected and what came', async () => {
    const { training } = await openApi();
    const refusal = await refusalOf((options) =>
      training.createJob(
        {
          jobId: 'A',
          displayName: 'a\u0007',
          requestId: 'again',
          spec: { model: { preset: 'lama' }, dataset: 'x', stepCount: 0, adapter: { rank: 0 }, seed: -1 },
        },
        options,
      ),
    );
    expect(refusal.code).toBe(Status.INVALID_ARGUMENT);
    expect(refusal.fields).toEqual([
      'job_id',
      'display_name',
      'request_id',
      'spec.dataset',
      'spec.model.preset',
      'spec.step_count',
      'spec.adapter.cycle_step_count',
      'spec.adapter.rank',
      'spec.seed',
    ]);
    expect(refusal.badRequest?.fieldViolations.at(-1)?.description).toBe(
      'expected a whole number from 0 to 2147483647, got -1',
    );
  });

  it('carries what changes of its message in its metadata', async () => {
    expect((await provocations.SEQUENCE_BEYOND_END()).info.metadata).toMatchObject({
      afterSequence: '1000',
      oldestSequence: '1',
      newestSequence: expect.stringMatching(/^[1-9]$/) as string,
    });
  });

  it('of ours gives the client an id, and the log the stack', async () => {
    const lines: string[] = [];
    const log: Logger = pino({}, { write: (line: string) => void lines.push(line) });
    const answer = await answerTo(log, new Error('the secret cause'), new AbortController().signal);
    expect(answer).toMatchObject({ code: Status.INTERNAL, reason: 'INTERNAL_ERROR' });
    expect((answer as Error).message).not.toContain('secret');
    const logged = JSON.parse(lines[0]!) as { errorId: string; err: { stack: string } };
    expect((answer as Error).message).toContain(logged.errorId);
    expect(logged.err.stack).toContain('the secret cause');
  });

  it('after the client has gone is a cancelled call, not a fault', async () => {
    const lines: string[] = [];
    const log: Logger = pino({}, { write: (line: string) => void lines.push(line) });
    const gone = new AbortController();
    gone.abort();
    expect(await answerTo(log, new Error('write after end'), gone.signal)).toMatchObject({
      code: Status.CANCELLED,
      reason: 'CALL_CANCELLED',
    });
    expect(lines).toEqual([]);
  });
});

/** The middleware's answer to an error thrown by a handler. */
async function answerTo(log: Logger, error: Error, signal: AbortSignal): Promise<unknown> {
  const method = {
    path: '/relora.v1.TrainingService/GetJob',
    requestStream: false,
    responseStream: false,
  };
  const context = {
    metadata: new Metadata(),
    peer: '',
    caller: nobody,
    certificate: () => undefined,
    signal,
    end: () => {},
  };
  const fails = (): never => {
    throw error;
  };
  return await errorMiddleware(log, { freeDiskBytesMin: 0 })({ method, context }, fails)
    .next()
    .catch((answer: unknown) => answer);
}
