import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { ChannelCredentials, createChannel, createClientFactory, type Channel, type Client } from 'nice-grpc';
import { callMiddleware, defaultRetries, LinkedAbort, sleep, type RetryOptions } from './calls.js';
import * as contract from './contract.js';
import { downloadFiles, type DownloadOptions } from './download.js';
import { JobFailedError, ReloraError } from './errors.js';
import type { JobEvent } from './events.js';
import { isTerminal } from './jobState.js';
import { createComparison, type ComparisonOptions } from './comparison.js';
import { sweepLearningRate, type Sweep, type SweepOptions } from './sweep.js';
import { uploadDataset, type UploadOptions } from './upload.js';
import { uploadWeights, type UploadWeightsOptions } from './uploadWeights.js';
import { watchJob, type WatchOptions } from './watch.js';

export interface ClientOptions {
  /** host:port; by default the variable RELORA_ADDRESS, or 127.0.0.1:50051. */
  address?: string;
  /** Transport security; plain text by default, for servers on the same machine. */
  tls?: { rootCertificates?: Buffer; privateKey?: Buffer; certificateChain?: Buffer };
  /** Longest time for a call that does not stream; default 30 s. Pausing and cancelling wait for a checkpoint. */
  deadlineMs?: number;
  /** Repeats of failed calls; `{ attemptsMax: 1 }` turns them off. */
  retries?: Partial<RetryOptions>;
}

export interface CallOptions {
  signal?: AbortSignal;
}

/** Fields of a request that may be left out are optional here too. */
export type JobSpec = contract.DeepPartial<contract.JobSpec>;
export type CreateJobOptions = Omit<
  contract.DeepPartial<contract.CreateJobRequest>,
  'spec' | 'validateOnly'
> &
  CallOptions;
export type ForkJobOptions = Omit<contract.DeepPartial<contract.ForkJobRequest>, 'name' | 'spec'> &
  CallOptions;
export type GenerateOptions = Omit<contract.DeepPartial<contract.GenerateTextRequest>, 'model'> & CallOptions;
export type ExportWeightsOptions = Omit<contract.DeepPartial<contract.ExportWeightsRequest>, 'job'> &
  CallOptions;
export type ListJobsOptions = Omit<contract.DeepPartial<contract.ListJobsRequest>, 'pageToken'> & CallOptions;
export type MetricHistoryOptions = CallOptions & { metrics?: contract.Metric[]; pointsMax?: number };
export type CompareJobsOptions = MetricHistoryOptions & { reference?: string };
export type ControlOptions = CallOptions & { requestId?: string; etag?: string };

export interface WaitOptions extends WatchOptions {
  onEvent?: (event: JobEvent) => void;
  /** Also returns when the job is paused, which without this is waited out. */
  untilPaused?: boolean;
}

/** A connection to a ReLoRA training server. Methods throw ReloraError; names are `jobs/…`, `datasets/…`, `jobs/…/artifacts/…`. */
export class ReloraClient {
  readonly address: string;
  private readonly retries: RetryOptions;
  private readonly closing = new AbortController();
  private readonly channel: Channel;
  private readonly closed = new AbortController();
  private readonly training: Client<typeof contract.TrainingServiceDefinition>;
  private readonly artifacts: Client<typeof contract.ArtifactServiceDefinition>;
  private readonly datasets: Client<typeof contract.DatasetServiceDefinition>;
  private readonly models: Client<typeof contract.ModelServiceDefinition>;
  private readonly weights: Client<typeof contract.WeightsServiceDefinition>;
  private readonly server: Client<typeof contract.ServerServiceDefinition>;

  constructor(options: ClientOptions = {}) {
    this.address = options.address ?? process.env.RELORA_ADDRESS ?? '127.0.0.1:50051';
    this.retries = { ...defaultRetries, ...options.retries };
    // Every call listens for the end of the client; Node would take more than ten of them for a leak.
    setMaxListeners(0, this.closing.signal);
    const { tls } = options;
    const credentials = tls
      ? ChannelCredentials.createSsl(tls.rootCertificates, tls.privateKey, tls.certificateChain)
      : ChannelCredentials.createInsecure();
    this.channel = createChannel(this.address, credentials, {
      // Found dead within 80 s; more often would annoy proxies (gRFC A8).
      'grpc.keepalive_time_ms': 60_000,
      'grpc.keepalive_timeout_ms': 20_000,
      'grpc.max_reconnect_backoff_ms': 5000,
    });
    const factory = createClientFactory().use(
      callMiddleware({
        deadlineMs: options.deadlineMs ?? 30_000,
        retries: this.retries,
        closing: this.closing.signal,
      }),
    );
    this.training = factory.create(contract.TrainingServiceDefinition, this.channel);
    this.artifacts = factory.create(contract.ArtifactServiceDefinition, this.channel);
    this.datasets = factory.create(contract.DatasetServiceDefinition, this.channel);
    this.models = factory.create(contract.ModelServiceDefinition, this.channel);
    this.weights = factory.create(contract.WeightsServiceDefinition, this.channel);
    this.server = factory.create(contract.ServerServiceDefinition, this.channel);
  }

  /** Ends the connection and whatever still runs on it, which throws a ReloraError with the code CANCELLED. */
  close(): void {
    this.closing.abort(new ReloraError('The client was closed', { code: 'CANCELLED' }));
    this.channel.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  /** Stores a job and queues it. Repeating the call with the same requestId returns the same job. */
  async createJob(spec: JobSpec, { signal, ...options }: CreateJobOptions = {}): Promise<contract.Job> {
    const response = await this.training.createJob({ requestId: randomUUID(), ...options, spec }, { signal });
    return present(response.job, 'job');
  }

  /** Checks a specification as createJob would and returns job, estimate, plan and warnings; nothing is stored. */
  async validateJob(
    spec: JobSpec,
    { signal, ...options }: CreateJobOptions = {},
  ): Promise<contract.CreateJobResponse> {
    return await this.training.createJob({ ...options, spec, validateOnly: true }, { signal });
  }

  /** What a job would cost, and when things would happen. */
  async estimateJob(spec: JobSpec, { signal }: CallOptions = {}): Promise<contract.EstimateJobResponse> {
    return await this.training.estimateJob({ spec }, { signal });
  }

  async getJob(name: string, { signal }: CallOptions = {}): Promise<contract.Job> {
    return present((await this.training.getJob({ name }, { signal })).job, 'job');
  }

  /** All jobs that match, newest first unless ordered otherwise, fetched page by page. */
  async *listJobs({ signal, ...request }: ListJobsOptions = {}): AsyncGenerator<
    contract.Job,
    void,
    undefined
  > {
    for (let pageToken: string | undefined = ''; pageToken !== undefined;) {
      const page: contract.ListJobsResponse = await this.training.listJobs(
        { ...request, pageToken },
        { signal },
      );
      yield* page.jobs;
      pageToken = page.nextPageToken || undefined;
    }
  }

  /**
   * A job's events, past and future, each once and in order, until the final one. Reconnects by itself.
   * @example for await (const event of client.watch(job.name)) if (event.kind === 'step') console.log(event.step.loss);
   */
  async *watch(name: string, options: WatchOptions = {}): AsyncGenerator<JobEvent, void, undefined> {
    using stop = new LinkedAbort(this.closing.signal, options.signal);
    const calls = {
      open: (afterSequence: number, signal: AbortSignal) =>
        this.training.watchJob({ name, afterSequence }, { signal }),
      get: (signal: AbortSignal) => this.getJob(name, { signal }),
    };
    yield* watchJob(calls, options, this.retries, stop.signal);
  }

  /** Resolves when the job has succeeded; throws JobFailedError when it failed or was cancelled. Waits while it is paused. */
  async waitForJob(
    name: string,
    { onEvent, untilPaused = false, ...options }: WaitOptions = {},
  ): Promise<contract.Job> {
    const isOver = ({ state }: contract.Job) =>
      isTerminal(state) || (untilPaused && state === contract.JobState.PAUSED);
    let job = await this.getJob(name, options);
    // The past is told only to those who listen.
    const afterSequence = options.afterSequence ?? (onEvent ? 0 : job.lastSequence);
    if (!isOver(job) || job.lastSequence > afterSequence) {
      for await (const event of this.watch(name, { ...options, afterSequence })) {
        onEvent?.(event);
        if (!untilPaused || event.kind !== 'state' || event.state.to !== contract.JobState.PAUSED) continue;
        job = await this.getJob(name, options);
        if (isOver(job)) break; // a pause of the past may be over
      }
      job = await this.getJob(name, options);
    }
    if (job.state === contract.JobState.SUCCEEDED || !isTerminal(job.state)) return job;
    const { reason = '', message = job.stateReason } = job.failure ?? {};
    const ended = job.state === contract.JobState.CANCELLED ? 'was cancelled' : 'failed';
    throw new JobFailedError(`${name} ${ended}: ${message}`, { code: 'FAILED_PRECONDITION', reason });
  }

  /** Stops a job with a checkpoint; returns when that is saved. */
  async pauseJob(name: string, { signal, ...options }: ControlOptions = {}): Promise<contract.Job> {
    return present(
      (await this.training.pauseJob({ requestId: randomUUID(), ...options, name }, { signal })).job,
      'job',
    );
  }

  /** Puts a paused job back into the queue. */
  async resumeJob(name: string, { signal, ...options }: ControlOptions = {}): Promise<contract.Job> {
    return present(
      (await this.training.resumeJob({ requestId: randomUUID(), ...options, name }, { signal })).job,
      'job',
    );
  }

  /** Ends a job for good; returns when its trainer has stopped. */
  async cancelJob(name: string, { signal, ...options }: ControlOptions = {}): Promise<contract.Job> {
    return present(
      (await this.training.cancelJob({ requestId: randomUUID(), ...options, name }, { signal })).job,
      'job',
    );
  }

  /**
   * Makes a new job that begins at a checkpoint of an ended one, by default the newest. What `changes` leave unset stays as
   * it was; they cannot change what the checkpoint holds.
   * @example await client.forkJob(job.name, { recomputation: Recomputation.BLOCKS });
   */
  async forkJob(
    name: string,
    changes: JobSpec = {},
    { signal, ...options }: ForkJobOptions = {},
  ): Promise<contract.Job> {
    const request = { requestId: randomUUID(), ...options, name, spec: changes };
    return present((await this.training.forkJob(request, { signal })).job, 'job');
  }

  /** @deprecated The name that `forkJob` had; it goes with version 1.0. */
  async restartJob(name: string, changes?: JobSpec, options?: ForkJobOptions): Promise<contract.Job> {
    return await this.forkJob(name, changes, options);
  }

  /** Restarts of a job, the first one first, each with its proof, fetched page by page. */
  async *listRestarts(
    job: string,
    { signal, pageSize }: CallOptions & { pageSize?: number } = {},
  ): AsyncGenerator<contract.Restart, void, undefined> {
    for (let pageToken: string | undefined = ''; pageToken !== undefined;) {
      const page: contract.ListRestartsResponse = await this.training.listRestarts(
        { parent: job, pageSize, pageToken },
        { signal },
      );
      yield* page.restarts;
      pageToken = page.nextPageToken || undefined;
    }
  }

  /** The series of a job, such as its loss by step, in at most so many points each. */
  async getMetricHistory(
    name: string,
    { signal, ...options }: MetricHistoryOptions = {},
  ): Promise<contract.GetMetricHistoryResponse> {
    return await this.training.getMetricHistory({ ...options, name }, { signal });
  }

  /** Sets jobs side by side: series on common axes, a table against a reference, and what makes them hard to compare. */
  async compareJobs(
    names: readonly string[],
    { signal, ...options }: CompareJobsOptions = {},
  ): Promise<contract.CompareJobsResponse> {
    return await this.training.compareJobs({ ...options, names: [...names] }, { signal });
  }

  /**
   * Queues the same training by several kinds and seeds, for the same number of tokens each.
   * @param spec of kind RELORA; its learning rate, where it is set, is that of all kinds
   * @example const { id } = await client.createComparison(spec, { seeds: [1, 2, 3] });
   */
  async createComparison(
    spec: JobSpec,
    options: ComparisonOptions = {},
  ): Promise<{ id: string; jobs: contract.Job[] }> {
    return await createComparison(this, spec, options);
  }

  /**
   * Trains a specification with every learning rate of a grid, with every kind and rank that is asked for, waits for the jobs
   * and finds the best rates by held-out loss. Called again with the same id it goes on with the jobs of the first call.
   * @example const { variants } = await client.sweepLearningRate(spec, { from: 1e-4, to: 1e-2, count: 5 });
   */
  async sweepLearningRate(spec: JobSpec, options: SweepOptions): Promise<Sweep> {
    return await sweepLearningRate(this, spec, options);
  }

  /**
   * Exports the weights of a checkpoint, or of a running job as they are now, which is not disturbed. The artifact is PENDING:
   * `waitForArtifact` tells when it can be downloaded.
   * @example await client.waitForArtifact((await client.exportWeights(job.name, { format: ExportFormat.GGUF })).name);
   */
  async exportWeights(
    job: string,
    { signal, ...options }: ExportWeightsOptions = {},
  ): Promise<contract.Artifact> {
    const request = { requestId: randomUUID(), ...options, job };
    return present((await this.artifacts.exportWeights(request, { signal })).artifact, 'artifact');
  }

  async getArtifact(name: string, { signal }: CallOptions = {}): Promise<contract.Artifact> {
    return present((await this.artifacts.getArtifact({ name }, { signal })).artifact, 'artifact');
  }

  /** Resolves when an artifact is READY; throws a ReloraError with its reason when it could not be made. */
  async waitForArtifact(name: string, options: CallOptions = {}): Promise<contract.Artifact> {
    using stop = new LinkedAbort(this.closing.signal, options.signal);
    for (let delayMs = 50; ; delayMs = Math.min(1000, 2 * delayMs)) {
      const artifact = await this.getArtifact(name, { signal: stop.signal });
      if (artifact.state === contract.ArtifactState.READY) return artifact;
      if (artifact.state === contract.ArtifactState.FAILED) {
        const { reason = '', message = '' } = artifact.failure ?? {};
        throw new ReloraError(`${name} could not be made: ${message}`, {
          code: 'FAILED_PRECONDITION',
          reason,
        });
      }
      await sleep(delayMs, stop.signal);
    }
  }

  /** Deletes an artifact and its files; one that is still being made is given up. */
  async deleteArtifact(name: string, { signal }: CallOptions = {}): Promise<void> {
    await this.artifacts.deleteArtifact({ name }, { signal });
  }

  /** Artifacts of a job, oldest first. */
  async listArtifacts(job: string, { signal }: CallOptions = {}): Promise<contract.Artifact[]> {
    const found: contract.Artifact[] = [];
    for (let pageToken: string | undefined = ''; pageToken !== undefined;) {
      const page: contract.ListArtifactsResponse = await this.artifacts.listArtifacts(
        { parent: job, pageToken },
        { signal },
      );
      for (const artifact of page.artifacts) found.push(artifact);
      pageToken = page.nextPageToken || undefined;
    }
    return found;
  }

  /**
   * Brings an artifact into a folder: goes on where a broken download stopped, verifies every SHA-256, and gives files their
   * names only then. @param name `jobs/…/artifacts/…`, or `jobs/…` for the job's newest model in Hugging Face layout. @returns paths of the files
   */
  async downloadArtifact(name: string, folder: string, options: DownloadOptions = {}): Promise<string[]> {
    const [, job, artifactId] = /^(jobs\/[^/]+)(?:\/artifacts\/([^/]+))?$/.exec(name) ?? [];
    if (job === undefined)
      throw new ReloraError(`${JSON.stringify(name)} should be jobs/… or jobs/…/artifacts/…`, {
        code: 'INVALID_ARGUMENT',
      });
    const artifacts = await this.listArtifacts(job, options);
    // Servers before ExportWeights say neither: theirs are all sealed models.
    const isModel = ({ state, format }: contract.Artifact) =>
      (state === contract.ArtifactState.READY || state === contract.ArtifactState.UNSPECIFIED) &&
      (format === contract.ExportFormat.HUGGING_FACE || format === contract.ExportFormat.UNSPECIFIED);
    const artifact =
      artifactId === undefined ? artifacts.findLast(isModel) : artifacts.find((entry) => entry.name === name);
    if (artifact === undefined)
      throw new ReloraError(`${name} has no such artifact yet`, { code: 'NOT_FOUND' });
    if (artifact.state === contract.ArtifactState.PENDING || artifact.state === contract.ArtifactState.FAILED)
      throw new ReloraError(`${name} is ${artifact.state.replace('ARTIFACT_STATE_', '')}, not READY`, {
        code: 'FAILED_PRECONDITION',
        reason: 'ARTIFACT_NOT_READY',
      });
    using stop = new LinkedAbort(this.closing.signal, options.signal);
    const { signal } = stop;
    const openDownload = (fileName: string, offsetBytes: number) =>
      this.artifacts.downloadArtifact({ name: artifact.name, fileName, offsetBytes }, { signal });
    return await downloadFiles(artifact, folder, openDownload, this.retries, signal, options.onProgress);
  }

  /** Registers a data set and waits until jobs can use it. */
  async uploadDataset(options: UploadOptions): Promise<contract.Dataset> {
    using stop = new LinkedAbort(this.closing.signal, options.signal);
    const { signal } = stop;
    const calls = {
      upload: async (messages: AsyncIterable<contract.DeepPartial<contract.UploadDatasetRequest>>) =>
        present((await this.datasets.uploadDataset(messages, { signal })).dataset, 'dataset'),
      get: async (name: string) =>
        await this.getDataset(name, { signal }).catch((error: unknown) => {
          if (error instanceof ReloraError && error.code === 'NOT_FOUND') return undefined;
          throw error;
        }),
    };
    return await uploadDataset(calls, options, this.retries, signal);
  }

  /** Uploads a model in Hugging Face layout for jobs to begin at, and waits until the server has checked it. */
  async uploadWeights(options: UploadWeightsOptions): Promise<contract.Weights> {
    using stop = new LinkedAbort(this.closing.signal, options.signal);
    const { signal } = stop;
    const calls = {
      upload: async (messages: AsyncIterable<contract.DeepPartial<contract.UploadWeightsRequest>>) =>
        present((await this.weights.uploadWeights(messages, { signal })).weights, 'weights'),
      get: async (name: string) =>
        await this.getWeights(name, { signal }).catch((error: unknown) => {
          if (error instanceof ReloraError && error.code === 'NOT_FOUND') return undefined;
          throw error;
        }),
    };
    return await uploadWeights(calls, options, this.retries, signal);
  }

  async getWeights(name: string, { signal }: CallOptions = {}): Promise<contract.Weights> {
    return present((await this.weights.getWeights({ name }, { signal })).weights, 'weights');
  }

  /** All uploaded weights, newest first, fetched page by page. */
  async *listWeights({ signal, pageSize }: CallOptions & { pageSize?: number } = {}): AsyncGenerator<
    contract.Weights,
    void,
    undefined
  > {
    for (let pageToken: string | undefined = ''; pageToken !== undefined;) {
      const page: contract.ListWeightsResponse = await this.weights.listWeights(
        { pageSize, pageToken },
        { signal },
      );
      yield* page.weights;
      pageToken = page.nextPageToken || undefined;
    }
  }

  /** Deletes weights that no unfinished job begins at. */
  async deleteWeights(name: string, { signal }: CallOptions = {}): Promise<void> {
    await this.weights.deleteWeights({ name }, { signal });
  }

  async getDataset(name: string, { signal }: CallOptions = {}): Promise<contract.Dataset> {
    return present((await this.datasets.getDataset({ name }, { signal })).dataset, 'dataset');
  }

  /** All data sets, newest first, fetched page by page. */
  async *listDatasets({ signal, pageSize }: CallOptions & { pageSize?: number } = {}): AsyncGenerator<
    contract.Dataset,
    void,
    undefined
  > {
    for (let pageToken: string | undefined = ''; pageToken !== undefined;) {
      const page: contract.ListDatasetsResponse = await this.datasets.listDatasets(
        { pageSize, pageToken },
        { signal },
      );
      yield* page.datasets;
      pageToken = page.nextPageToken || undefined;
    }
  }

  /** First tokens of a data set as the model sees them. */
  async previewDataset(
    name: string,
    { signal, ...options }: CallOptions & { tokenCount?: number; split?: contract.DatasetSplit } = {},
  ): Promise<contract.PreviewToken[]> {
    return (await this.datasets.previewDataset({ ...options, name }, { signal })).tokens;
  }

  /**
   * Continues a text. @param model `jobs/…/artifacts/…`, or `jobs/…` for its newest weights
   * @example for await (const { text } of client.generate(job.name, { prompt: 'Once' })) process.stdout.write(text);
   */
  generate(
    model: string,
    { signal, ...options }: GenerateOptions = {},
  ): AsyncIterable<contract.GenerateTextResponse> {
    return this.models.generateText({ ...options, model }, { signal });
  }

  /** Version, devices, slots, limits and presets of the server. */
  async serverInfo({ signal }: CallOptions = {}): Promise<contract.GetServerInfoResponse> {
    return await this.server.getServerInfo({}, { signal });
  }
}

function present<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new ReloraError(`The server's answer has no ${what}`, { code: 'INTERNAL' });
  return value;
}
