import { createHash, randomUUID } from 'node:crypto';
import { createServer, ServerError, Status, type CallContext, type Server } from 'nice-grpc';
import * as contract from '../contract.js';
import { isTerminal } from '../jobState.js';
import type { StatusName } from '../errors.js';
import { ScriptedJob, type JobScript } from './scriptedJob.js';

export type { JobScript } from './scriptedJob.js';

type Definition = { methods: Record<string, { responseStream: boolean }> };
type Handler = (request: never, context: CallContext) => unknown;

/**
 * A server for tests of programs that use the SDK: it implements the contract over gRPC on a free port of this machine, but its jobs follow
 * a script instead of training. Methods that are not implemented return UNIMPLEMENTED with their name.
 */
export class TestServer {
  private readonly jobs = new Map<string, ScriptedJob>();
  private readonly byRequest = new Map<string, ScriptedJob>();
  private readonly datasets = new Map<string, contract.Dataset>();
  private readonly faults: { method: string; code: StatusName; message: string }[] = [];
  private readonly scripts: JobScript[] = [];
  private streams = new AbortController();
  private readonly server: Server = createServer();
  private usual: JobScript = {};
  /** Names of the received calls, in order, such as `createJob`. */
  readonly calls: string[] = [];
  /** host:port, for ReloraClient and RELORA_ADDRESS. */
  address = '';

  /** Starts on a free port. */
  static async start(): Promise<TestServer> {
    const server = new TestServer();
    for (const definition of [
      contract.TrainingServiceDefinition,
      contract.ArtifactServiceDefinition,
      contract.DatasetServiceDefinition,
      contract.ServerServiceDefinition,
      contract.ModelServiceDefinition,
      contract.WeightsServiceDefinition,
      contract.WebhookServiceDefinition,
    ])
      server.add(definition);
    server.address = `127.0.0.1:${await server.server.listen('127.0.0.1:0')}`;
    return server;
  }

  /** Sets what jobs do from now on. */
  script(script: JobScript): void {
    this.usual = script;
  }

  /** Sets what the next job does; several calls apply to several jobs. */
  scriptNext(script: JobScript): void {
    this.scripts.push(script);
  }

  /** Adds a data set that jobs can name, as if it had been uploaded. */
  addDataset(id: string): void {
    const name = `datasets/${id}`;
    this.datasets.set(
      name,
      contract.Dataset.fromPartial({ name, state: contract.DatasetState.READY, createTime: new Date() }),
    );
  }

  /** Makes the next calls of a method, such as `getJob`, fail. */
  failNext(method: string, code: StatusName, { times = 1, message = 'On purpose' } = {}): void {
    for (let count = 0; count < times; count++) this.faults.push({ method, code, message });
  }

  /** Breaks all open streams, as a network failure does. */
  breakStreams(): void {
    this.streams.abort();
    this.streams = new AbortController();
  }

  async stop(): Promise<void> {
    this.breakStreams();
    this.server.forceShutdown();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  private add(definition: Definition): void {
    const handlers = this.handlers as Record<string, Handler | undefined>;
    const methods = Object.entries(definition.methods).map(([name, { responseStream }]) => {
      const handle = (request: never, context: CallContext): unknown => {
        this.calls.push(name);
        const index = this.faults.findIndex(({ method }) => method === name);
        const [fault] = index < 0 ? [] : this.faults.splice(index, 1);
        if (fault !== undefined) throw new ServerError(Status[fault.code], fault.message);
        const handler = handlers[name];
        if (handler === undefined)
          throw new ServerError(Status.UNIMPLEMENTED, `The test server has no ${name}`);
        return handler.call(this, request, context);
      };
      const stream = async function* (request: never, context: CallContext): AsyncGenerator {
        yield* handle(request, context) as AsyncIterable<unknown>;
      };
      const unary = async (request: never, context: CallContext): Promise<unknown> =>
        await handle(request, context);
      return [name, responseStream ? stream : unary];
    });
    // The types of nice-grpc want each method by name, but here they are only known as data.
    this.server.add(definition as never, Object.fromEntries(methods) as never);
  }

  private readonly handlers = {
    createJob: (request: contract.CreateJobRequest): contract.DeepPartial<contract.CreateJobResponse> => {
      const known = request.requestId === '' ? undefined : this.byRequest.get(request.requestId);
      if (known !== undefined) return { job: known.job };
      const dataset = request.spec?.dataset ?? '';
      if (!this.datasets.has(dataset)) throw absent(dataset || 'spec.dataset');
      const script = this.scripts.shift() ?? this.usual;
      const jobId = request.jobId || `job-${randomUUID()}`;
      if (this.jobs.has(`jobs/${jobId}`))
        throw new ServerError(Status.ALREADY_EXISTS, `jobs/${jobId} exists already`);
      const scripted = new ScriptedJob({ ...request, jobId }, script);
      if (request.validateOnly) return { job: { ...scripted.job, name: '' } };
      this.jobs.set(scripted.job.name, scripted);
      if (request.requestId !== '') this.byRequest.set(request.requestId, scripted);
      setImmediate(() => void scripted.run());
      return { job: scripted.job };
    },
    getJob: ({ name }: { name: string }) => ({ job: this.find(name).job }),
    listJobs: ({ states, labels }: contract.ListJobsRequest) => ({
      jobs: [...this.jobs.values()]
        .map(({ job }) => job)
        .filter(({ state }) => states.length === 0 || states.includes(state))
        .filter((job) => Object.entries(labels).every(([key, value]) => job.labels[key] === value))
        .reverse(),
    }),
    watchJob: (request: contract.WatchJobRequest, { signal }: CallContext) => this.watch(request, signal),
    pauseJob: ({ name }: { name: string }) => this.steer(name, (job) => job.pause()),
    resumeJob: ({ name }: { name: string }) =>
      this.steer(name, (job) => job.resume() && (setImmediate(() => void job.run()), true)),
    cancelJob: ({ name }: { name: string }) => this.steer(name, (job) => job.cancel()),
    listArtifacts: ({ parent }: { parent: string }) => {
      const job = this.find(parent);
      return { artifacts: job.job.state === contract.JobState.SUCCEEDED ? [job.artifact()] : [] };
    },
    getArtifact: ({ name }: { name: string }) => ({ artifact: this.find(name).artifact() }),
    downloadArtifact: (request: contract.DownloadArtifactRequest) => this.download(request),
    uploadDataset: async (messages: AsyncIterable<contract.UploadDatasetRequest>) =>
      await this.receive(messages),
    getDataset: ({ name }: { name: string }) => {
      const dataset = this.datasets.get(name);
      if (dataset === undefined) throw absent(name);
      return { dataset };
    },
    listDatasets: () => ({ datasets: [...this.datasets.values()] }),
    getServerInfo: () => ({ version: 'test', slotCount: 1 }),
  };

  private find(name: string): ScriptedJob {
    const job = this.jobs.get(name.split('/').slice(0, 2).join('/'));
    if (job === undefined) throw absent(name);
    return job;
  }

  private steer(name: string, act: (job: ScriptedJob) => boolean): { job: contract.Job } {
    const scripted = this.find(name);
    const { state } = scripted.job;
    if (!act(scripted)) throw new ServerError(Status.FAILED_PRECONDITION, `${name} is ${state}`);
    return { job: scripted.job };
  }

  private async *watch(
    { name, afterSequence }: contract.WatchJobRequest,
    signal: AbortSignal,
  ): AsyncGenerator<{ event: contract.JobEvent }> {
    const scripted = this.find(name);
    const broken = this.streams.signal;
    const ended = AbortSignal.any([signal, broken]);
    for (let sequence = afterSequence; ;) {
      for (const event of scripted.events.slice(sequence)) {
        if (broken.aborted) throw new ServerError(Status.UNAVAILABLE, 'The stream was broken');
        yield { event };
        ({ sequence } = event);
      }
      if (isTerminal(scripted.job.state) && sequence >= scripted.events.length) return;
      if (sequence >= scripted.events.length) await scripted.changed(ended);
      if (signal.aborted) return;
      if (broken.aborted) throw new ServerError(Status.UNAVAILABLE, 'The stream was broken');
    }
  }

  private async *download({
    name,
    fileName,
    offsetBytes,
  }: contract.DownloadArtifactRequest): AsyncGenerator<
    contract.DeepPartial<contract.DownloadArtifactResponse>
  > {
    const scripted = this.find(name);
    const bytes = scripted.files[fileName];
    if (bytes === undefined) throw absent(`${name}: ${fileName}`);
    const file = scripted.artifact().files.find((each) => each.fileName === fileName)!;
    const pieceBytes = 64 * 1024;
    for (let offset = offsetBytes; offset === offsetBytes || offset < bytes.length; offset += pieceBytes)
      yield { offsetBytes: offset, data: Buffer.from(bytes.subarray(offset, offset + pieceBytes)), file };
  }

  private async receive(
    messages: AsyncIterable<contract.UploadDatasetRequest>,
  ): Promise<{ dataset: contract.Dataset }> {
    let header: contract.UploadDatasetHeader | undefined;
    const hashes = new Map<number, ReturnType<typeof createHash>>();
    for await (const message of messages) {
      header ??= message.header;
      if (message.chunk === undefined) continue;
      const { fileIndex, data } = message.chunk;
      const hash = hashes.get(fileIndex) ?? createHash('sha256');
      hashes.set(fileIndex, hash.update(data));
    }
    if (header === undefined)
      throw new ServerError(Status.INVALID_ARGUMENT, 'header: expected the first message');
    for (const [index, { sha256, fileName }] of header.files.entries())
      if (hashes.has(index) && hashes.get(index)!.digest('hex') !== sha256)
        throw new ServerError(Status.DATA_LOSS, `${fileName} has another SHA-256`);
    this.addDataset(header.datasetId || `dataset-${randomUUID()}`);
    return { dataset: [...this.datasets.values()].at(-1)! };
  }
}

/** Starts a server for tests; stop it, or declare it with `await using`. */
export async function startTestServer(): Promise<TestServer> {
  return await TestServer.start();
}

function absent(name: string): ServerError {
  return new ServerError(Status.NOT_FOUND, `${name} does not exist`);
}
