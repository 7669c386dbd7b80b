import { randomBytes, randomUUID } from 'node:crypto';
import { createClientFactory } from 'nice-grpc';
import { Aborts, sleep } from './aborts.js';
import { parseAddress, type Address } from './address.js';
import { patientCall, split, type CallOptions } from './callOptions.js';
import { callMiddleware } from './calls.js';
import {
  Connector,
  defaultStreamLimits,
  StreamConnections,
  type Services,
  type StreamLimits,
} from './connections.js';
import * as contract from './contract.js';
import { callHeaders, tlsOptions, type CredentialOptions } from './credentials.js';
import { downloadFiles, type DownloadOptions } from './download.js';
import {
  exportedFiles,
  exportJobTo,
  importJobFrom,
  type ExportedJobFile,
  type ExportJobCalls,
  type ExportJobOptions,
  type ImportJobOptions,
  type JobFiles,
} from './jobArchive.js';
import { isReloraError, JobFailedError, ReloraError, type StatusName } from './errors.js';
import type { JobEvent } from './events.js';
import { isTerminal } from './jobState.js';
import { silentLogger, type Logger } from './logger.js';
import { createComparison, type ComparisonOptions } from './comparison.js';
import { pages } from './pages.js';
import {
  defaultDeadlineMs,
  defaultRetries,
  Patience,
  worthAnotherStream,
  type RetryOptions,
} from './patience.js';
import { sweepLearningRate, type Sweep, type SweepOptions } from './sweep.js';
import { uploadDataset, type UploadOptions } from './upload.js';
import { uploadWeights, type UploadWeightsOptions } from './uploadWeights.js';
import { untilSilence, watchJob, type WatchOptions } from './watch.js';
import { watchManyJobs, type JobsEvent, type WatchJobsOptions } from './watchJobs.js';

export interface ClientOptions extends CredentialOptions {
  /**
   * host:port, or https://host:port; default: the variable RELORA_ADDRESS, or 127.0.0.1:50051. Several servers of one store are separated
   * by commas: calls take turns, and skip servers that cannot be reached.
   */
  address?: string;
  /**
   * How long a call may take, including retries while the server cannot be reached; default 60 s, for `pauseJob` 5 minutes and for
   * `evaluate` an hour. Streams and waiting calls, which have no end of their own, are given up after this time without progress; default
   * 60 s.
   */
  deadlineMs?: number;
  /** Pauses between retries; `{ attemptsMax: 1 }` turns retries off. */
  retries?: Partial<RetryOptions>;
  /** Gets a line for each call and for each retry; default: none. */
  logger?: Logger;
  /** Limits for streams; further streams wait until others end. */
  streams?: Partial<StreamLimits>;
}

/** The server waits for a micro-batch and a checkpoint, and has a limit of its own, which is below this one. */
const pauseDeadlineMs = 5 * 60_000;
/** The server has no limit: an evaluation takes as long as its model needs. */
const evaluateDeadlineMs = 60 * 60_000;

/** Fields that may be omitted in a request are optional here, too. */
export type JobSpec = contract.DeepPartial<contract.JobSpec>;
export type CreateJobOptions = Omit<
  contract.DeepPartial<contract.CreateJobRequest>,
  'spec' | 'validateOnly'
> &
  CallOptions;
export type ForkJobOptions = Omit<contract.DeepPartial<contract.ForkJobRequest>, 'name' | 'spec'> &
  CallOptions;
export type UpdateJobChanges = Omit<
  contract.DeepPartial<contract.UpdateJobRequest>,
  'name' | 'requestId' | 'etag'
>;
export type GenerateOptions = Omit<contract.DeepPartial<contract.GenerateTextRequest>, 'model'> & CallOptions;
export type ExportWeightsOptions = Omit<contract.DeepPartial<contract.ExportWeightsRequest>, 'job'> &
  CallOptions;
export type ListJobsOptions = Omit<contract.DeepPartial<contract.ListJobsRequest>, 'pageToken'> & CallOptions;
export type MetricHistoryOptions = CallOptions & { metrics?: contract.Metric[]; pointsMax?: number };
export type CompareJobsOptions = MetricHistoryOptions & { reference?: string };
export type PageOptions = CallOptions & { pageSize?: number };
export type DeleteOptions = CallOptions & { allowMissing?: boolean; validateOnly?: boolean };
export type DeleteJobOptions = DeleteOptions & { etag?: string };
export type CreateWebhookOptions = Omit<contract.DeepPartial<contract.CreateWebhookRequest>, 'url'> &
  CallOptions;
/** `labels`: only those that have all of these; `owner`: only those that this owner uploaded. */
export type ListWeightsOptions = PageOptions & { labels?: Record<string, string>; owner?: string };
export type ListDatasetsOptions = ListWeightsOptions & { showDeleted?: boolean };
export type ControlOptions = CallOptions & { requestId?: string; etag?: string };

export interface WaitOptions extends WatchOptions {
  onEvent?: (event: JobEvent) => void;
  /** Also return when the job is paused; otherwise a pause is waited out. */
  untilPaused?: boolean;
}

/** A connection to a ReLoRA training server. Methods throw ReloraError; names are `jobs/…`, `datasets/…`, `jobs/…/artifacts/…`. */
export class ReloraClient {
  readonly address: string;
  private readonly retries: RetryOptions;
  private readonly givenDeadlineMs: number | undefined;
  private readonly deadlineMs: number;
  private readonly logger: Logger;
  private readonly aborts = new Aborts();
  /** Connection of calls with one answer, which are therefore never delayed by streams. */
  private readonly services: Services;
  private readonly closeUnary: () => void;
  private readonly streams: StreamConnections;

  constructor(options: ClientOptions = {}) {
    // Shells and compose files pass an unset variable as an empty one.
    this.address = options.address || process.env.RELORA_ADDRESS || '127.0.0.1:50051';
    this.retries = { ...defaultRetries, ...options.retries };
    this.givenDeadlineMs = options.deadlineMs;
    this.deadlineMs = options.deadlineMs ?? defaultDeadlineMs;
    this.logger = options.logger ?? silentLogger;
    const parsed = parseAddress(this.address);
    const tls = tlsOptions(options.tls);
    const address = { ...parsed, isSecure: parsed.isSecure || tls !== undefined };
    const factory = createClientFactory().use(
      callMiddleware({
        deadlineMs: this.deadlineMs,
        retries: this.retries,
        aborts: this.aborts,
        logger: this.logger,
        headers: callHeaders(options, address),
        explain: (error) => namingProxy(error, address),
      }),
    );
    const connector = new Connector(address, tls, factory);
    ({ services: this.services, close: this.closeUnary } = connector.open());
    this.streams = new StreamConnections(connector, { ...defaultStreamLimits, ...options.streams });
  }

  /** Closes the connections and aborts all calls, which throw a ReloraError with the code CANCELLED. */
  close(): void {
    this.aborts.close();
    this.closeUnary();
    this.streams.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  /** Stores a job and queues it. Repeating the call with the same requestId returns the same job. */
  async createJob(spec: JobSpec, options: CreateJobOptions = {}): Promise<contract.Job> {
    const [fields, call] = split(options);
    const response = await this.services.training.createJob({ ...identified(fields), spec }, call);
    return present(response.job, 'job');
  }

  /** Checks a specification like createJob and returns job, estimate, plan and warnings; nothing is stored. */
  async validateJob(spec: JobSpec, options: CreateJobOptions = {}): Promise<contract.CreateJobResponse> {
    const [fields, call] = split(options);
    return await this.services.training.createJob({ ...fields, spec, validateOnly: true }, call);
  }

  /** Estimates the cost of a job, and plans when things would happen. */
  async estimateJob(spec: JobSpec, options: CallOptions = {}): Promise<contract.EstimateJobResponse> {
    const [, call] = split(options);
    return await this.services.training.estimateJob({ spec }, call);
  }

  async getJob(name: string, options: CallOptions = {}): Promise<contract.Job> {
    const [, call] = split(options);
    return present((await this.services.training.getJob({ name }, call)).job, 'job');
  }

  /** All jobs that match, newest first unless ordered otherwise, fetched page by page. */
  listJobs(options: ListJobsOptions = {}): AsyncGenerator<contract.Job, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) => this.services.training.listJobs({ ...fields, pageToken }, call),
      ({ jobs }) => jobs,
    );
  }

  /**
   * A job's events, past and future, each once and in order, up to the final one. Reconnects automatically.
   * @example for await (const event of client.watch(job.name)) if (event.kind === 'step') console.log(event.step.loss);
   */
  async *watch(name: string, options: WatchOptions = {}): AsyncGenerator<JobEvent, void, undefined> {
    const { afterSequence = 0, storeId = '', silenceMs = 30_000, stepIntervalMs = 0 } = options;
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const [, call] = split({ ...options, signal });
    const calls = {
      open: (afterSequence: number, storeId: string) =>
        this.streams.read(signal, ({ training }) => {
          const open = (signal: AbortSignal) =>
            training.watchJob(
              { name, afterSequence, storeId, stepIntervalMs, acceptSpans: true },
              { ...call, signal },
            );
          return untilSilence(open, silenceMs, signal);
        }),
      get: () => this.getJob(name, { ...options, signal }),
    };
    const patience = this.patience(`Watching ${name}`, { ...options, signal }, worthAnotherStream);
    yield* watchJob(calls, { afterSequence, storeId }, patience);
  }

  /**
   * The events of many jobs in one stream: those named, or all with the labels, including jobs that are created later. Each job's events
   * come once and in order. Reconnects automatically; `cursor` continues a stream of another process.
   * @example for await (const event of client.watchJobs({ labels: { sweep: 'a' }, untilAllEnded: true })) console.log(event.job);
   */
  async *watchJobs(options: WatchJobsOptions = {}): AsyncGenerator<JobsEvent, void, undefined> {
    const { cursor = '', silenceMs = 30_000, onCursor = () => {}, names, labels, ...rest } = options;
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const [, call] = split({ ...options, signal });
    const { skipPast, untilAllEnded, stepIntervalMs } = rest;
    const request = { names: [...(names ?? [])], labels, skipPast, untilAllEnded, stepIntervalMs };
    const open = (cursor: string) =>
      this.streams.read(signal, ({ training }) =>
        untilSilence(
          (signal) => training.watchJobs({ ...request, cursor }, { ...call, signal }),
          silenceMs,
          signal,
        ),
      );
    const patience = this.patience('Watching jobs', { ...options, signal }, worthAnotherStream);
    yield* watchManyJobs(open, { cursor, onCursor }, patience);
  }

  /** Resolves when the job has succeeded; throws JobFailedError if it failed or was cancelled. Waits while it is paused. */
  async waitForJob(
    name: string,
    { onEvent, untilPaused = false, ...options }: WaitOptions = {},
  ): Promise<contract.Job> {
    const isOver = ({ state }: contract.Job) =>
      isTerminal(state) || (untilPaused && state === contract.JobState.PAUSED);
    let job = await this.getJob(name, options);
    // Past events are only fetched for a listener.
    const afterSequence = options.afterSequence ?? (onEvent ? 0 : job.lastSequence);
    if (!isOver(job) || job.lastSequence > afterSequence) {
      // Without a listener only the states matter, not a hundred thousand steps.
      const stepIntervalMs = options.stepIntervalMs ?? (onEvent ? 0 : 60_000);
      for await (const event of this.watch(name, { ...options, afterSequence, stepIntervalMs })) {
        onEvent?.(event);
        if (!untilPaused || event.kind !== 'state' || event.state.to !== contract.JobState.PAUSED) continue;
        job = await this.getJob(name, options);
        if (isOver(job)) break; // an earlier pause may be over
      }
      job = await this.getJob(name, options);
    }
    if (job.state === contract.JobState.SUCCEEDED || !isTerminal(job.state)) return job;
    const { reason = '', message = job.stateReason } = job.failure ?? {};
    const ended = job.state === contract.JobState.CANCELLED ? 'was cancelled' : 'failed';
    throw new JobFailedError(`${name} ${ended}: ${message}`, { code: 'FAILED_PRECONDITION', reason });
  }

  /** Stops a job and saves a checkpoint; returns once that is saved. Unless a deadline is given, this may take 5 minutes. */
  async pauseJob(name: string, options: ControlOptions = {}): Promise<contract.Job> {
    const [fields, given] = split(options);
    const call = patientCall(given, this.givenDeadlineMs, pauseDeadlineMs);
    return present((await this.services.training.pauseJob({ ...identified(fields), name }, call)).job, 'job');
  }

  /** Puts a paused job back into the queue. */
  async resumeJob(name: string, options: ControlOptions = {}): Promise<contract.Job> {
    const [fields, call] = split(options);
    return present(
      (await this.services.training.resumeJob({ ...identified(fields), name }, call)).job,
      'job',
    );
  }

  /** Ends a job for good; returns when its trainer has stopped. */
  async cancelJob(name: string, options: ControlOptions = {}): Promise<contract.Job> {
    const [fields, call] = split(options);
    return present(
      (await this.services.training.cancelJob({ ...identified(fields), name }, call)).job,
      'job',
    );
  }

  /**
   * Why a job waits: its position, what would have to become free, and when it may start; or why it ended. With a step, also which
   * documents add most to its loss, and where they are.
   */
  async explainJob(
    name: string,
    options: { step?: number } & CallOptions = {},
  ): Promise<contract.ExplainJobResponse> {
    const [fields, call] = split(options);
    return await this.services.training.explainJob({ ...fields, name }, call);
  }

  /** What the trainers of a job printed; with `follow`, also what they print until the job, or the attempt, has ended. */
  async *jobLog(
    name: string,
    options: CallOptions & { attempt?: number; follow?: boolean } = {},
  ): AsyncGenerator<contract.LogLine, void, undefined> {
    const [{ attempt, follow }] = split(options);
    const messages = this.repeatedUntilBegun(`The log of ${name}`, options, ({ training }, call) =>
      training.getJobLog({ name, attempt, follow }, call),
    );
    for await (const { lines } of messages) yield* lines;
  }

  /**
   * Changes a job that has not ended: its learning rate by a factor, its steps, when it evaluates, saves and samples, priority and labels.
   * A running job applies the change at its next step, which the event `update` names.
   * @example await client.updateJob(job.name, { learningRateFactor: 0.5 });
   */
  async updateJob(
    name: string,
    changes: UpdateJobChanges,
    options: ControlOptions = {},
  ): Promise<contract.UpdateJobResponse> {
    const [fields, call] = split(options);
    return await this.services.training.updateJob({ ...identified(fields), ...changes, name }, call);
  }

  /**
   * Deletes a job that has ended, with its checkpoints and artifacts; with `validateOnly`, returns what that would free. Until `purgeTime`,
   * undeleteJob restores it. Deleting it again changes nothing.
   */
  async deleteJob(name: string, options: DeleteJobOptions = {}): Promise<contract.DeleteJobResponse> {
    const [fields, call] = split(options);
    return await this.services.training.deleteJob({ ...fields, name }, call);
  }

  /** Restores a deleted job, until its purgeTime. */
  async undeleteJob(name: string, options: CallOptions = {}): Promise<contract.Job> {
    const [, call] = split(options);
    return present((await this.services.training.undeleteJob({ name }, call)).job, 'job');
  }

  /**
   * Creates a job that begins at a checkpoint of an ended one, by default the newest. Fields that are unset in `changes` stay as they were;
   * settings that the checkpoint depends on cannot change.
   * @example await client.forkJob(job.name, { recomputation: Recomputation.BLOCKS });
   */
  async forkJob(name: string, changes: JobSpec = {}, options: ForkJobOptions = {}): Promise<contract.Job> {
    const [fields, call] = split(options);
    const request = { ...identified(fields), name, spec: changes };
    return present((await this.services.training.forkJob(request, call)).job, 'job');
  }

  /** @deprecated Former name of `forkJob`, until version 1.0. */
  async restartJob(name: string, changes?: JobSpec, options?: ForkJobOptions): Promise<contract.Job> {
    return await this.forkJob(name, changes, options);
  }

  /** Restarts of a job in order, each with its measurements, fetched page by page. */
  listRestarts(job: string, options: PageOptions = {}): AsyncGenerator<contract.Restart, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) => this.services.training.listRestarts({ ...fields, parent: job, pageToken }, call),
      ({ restarts }) => restarts,
    );
  }

  /** The series of a job, such as its loss by step, with a limited number of points each. */
  async getMetricHistory(
    name: string,
    options: MetricHistoryOptions = {},
  ): Promise<contract.GetMetricHistoryResponse> {
    const [fields, call] = split(options);
    return await this.services.training.getMetricHistory({ ...fields, name }, call);
  }

  /** Compares jobs: series over common steps, a table against a reference, and what makes the jobs hard to compare. */
  async compareJobs(
    names: readonly string[],
    options: CompareJobsOptions = {},
  ): Promise<contract.CompareJobsResponse> {
    const [fields, call] = split(options);
    return await this.services.training.compareJobs({ ...fields, names: [...names] }, call);
  }

  /**
   * Queues the same training with several kinds and seeds, for the same number of tokens each.
   * @param spec of kind RELORA; if its learning rate is set, all kinds use it
   * @example const { id } = await client.createComparison(spec, { seeds: [1, 2, 3] });
   */
  async createComparison(
    spec: JobSpec,
    options: ComparisonOptions = {},
  ): Promise<{ id: string; jobs: contract.Job[] }> {
    return await createComparison(this, spec, options);
  }

  /**
   * Trains a specification with every learning rate of a grid, and with every requested kind and rank, waits for the jobs and finds the
   * best rates by held-out loss. Called again with the same id, it continues with the jobs of the first call.
   * @example const { variants } = await client.sweepLearningRate(spec, { from: 1e-4, to: 1e-2, count: 5 });
   */
  async sweepLearningRate(spec: JobSpec, options: SweepOptions): Promise<Sweep> {
    return await sweepLearningRate(this, spec, options);
  }

  /**
   * Exports the weights of a checkpoint, or the current weights of a running job, without disturbing it. The artifact is PENDING:
   * `waitForArtifact` resolves when it can be downloaded.
   * @example await client.waitForArtifact((await client.exportWeights(job.name, { format: ExportFormat.GGUF })).name);
   */
  async exportWeights(job: string, options: ExportWeightsOptions = {}): Promise<contract.Artifact> {
    const [fields, call] = split(options);
    const { artifact } = await this.services.artifacts.exportWeights({ ...identified(fields), job }, call);
    return present(artifact, 'artifact');
  }

  /**
   * Exports a job that has ended or is paused to a folder: specification, journal, checkpoints and artifacts, as of one moment, each file
   * verified. An interrupted export continues where it stopped. `importJob` imports the folder on any server.
   */
  async exportJob(
    name: string,
    folder: string,
    options: ExportJobOptions = {},
  ): Promise<contract.JobArchive> {
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const patience = this.patience(`Exporting ${name}`, { ...options, signal }, worthAnotherStream);
    return await exportJobTo(
      folder,
      this.exportCalls(name, { ...options, signal }),
      patience,
      options.onProgress,
    );
  }

  /** The same files one after another, for storing them elsewhere than in a folder: as a tar, in a bucket. */
  async *exportJobFiles(
    name: string,
    options: Omit<ExportJobOptions, 'onProgress'> = {},
  ): AsyncGenerator<ExportedJobFile> {
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const patience = this.patience(`Exporting ${name}`, { ...options, signal }, worthAnotherStream);
    yield* exportedFiles(this.exportCalls(name, { ...options, signal }), patience);
  }

  private exportCalls(name: string, options: ExportJobOptions & { signal: AbortSignal }): ExportJobCalls {
    const { signal, withDatasets = false } = options;
    const [, call] = split(options);
    return {
      open: (fileName, offsetBytes) =>
        this.streams.read(signal, ({ training }) =>
          training.exportJob({ name, fileName, offsetBytes, withDatasets }, call),
        ),
    };
  }

  /**
   * Imports a job that `exportJob` wrote to a folder, or the same files from elsewhere; an interrupted import continues where it stopped.
   */
  async importJob(from: string | JobFiles, options: ImportJobOptions = {}): Promise<contract.Job> {
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const [, call] = split({ ...options, signal });
    const upload = (messages: AsyncIterable<contract.DeepPartial<contract.ImportJobRequest>>) =>
      this.streams.write(signal, async ({ training }) => await training.importJob(messages, call));
    const patience = this.patience('Importing a job', { ...options, signal });
    return await importJobFrom(from, upload, patience, options);
  }

  async getArtifact(name: string, options: CallOptions = {}): Promise<contract.Artifact> {
    const [, call] = split(options);
    return present((await this.services.artifacts.getArtifact({ name }, call)).artifact, 'artifact');
  }

  /** Resolves when an artifact is READY; throws a ReloraError with its reason if making it failed. */
  async waitForArtifact(name: string, options: CallOptions = {}): Promise<contract.Artifact> {
    using stop = this.aborts.link(options.signal);
    for (let delayMs = 50; ; delayMs = Math.min(1000, 2 * delayMs)) {
      const artifact = await this.getArtifact(name, { ...options, signal: stop.signal });
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

  /** Deletes an artifact and its files; if it is still being made, that is aborted. */
  async deleteArtifact(name: string, options: CallOptions = {}): Promise<void> {
    await deleted((call) => this.services.artifacts.deleteArtifact({ name }, call), options);
  }

  /** Artifacts of a job, oldest first. */
  async listArtifacts(job: string, options: CallOptions = {}): Promise<contract.Artifact[]> {
    const [, call] = split(options);
    const found: contract.Artifact[] = [];
    for await (const artifact of pages(
      (pageToken) => this.services.artifacts.listArtifacts({ parent: job, pageToken }, call),
      ({ artifacts }) => artifacts,
    ))
      found.push(artifact);
    return found;
  }

  /**
   * Downloads an artifact to a folder: resumes where an interrupted download stopped, verifies every SHA-256, and only then gives files
   * their names. @param name `jobs/…/artifacts/…`, or `jobs/…` for the job's newest model in Hugging Face layout, or if it has none, its
   * newest artifact of another format; with `weights: BEST`, for the newest with the weights of its lowest held-out loss.
   * @returns paths of the files
   */
  async downloadArtifact(name: string, folder: string, options: DownloadOptions = {}): Promise<string[]> {
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const artifact = await this.findArtifact(name, { ...options, signal });
    const [, call] = split({ ...options, signal });
    const openDownload = (fileName: string, offsetBytes: number) =>
      this.streams.read(signal, ({ artifacts }) =>
        artifacts.downloadArtifact({ name: artifact.name, fileName, offsetBytes }, call),
      );
    const patience = this.patience(
      `Downloading ${artifact.name}`,
      { ...options, signal },
      worthAnotherStream,
    );
    return await downloadFiles(artifact, folder, openDownload, patience, options.onProgress);
  }

  /** Registers a data set and waits until jobs can use it. */
  async uploadDataset(options: UploadOptions): Promise<contract.Dataset> {
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const [, call] = split({ ...options, signal });
    const calls = {
      upload: (messages: AsyncIterable<contract.DeepPartial<contract.UploadDatasetRequest>>) =>
        this.streams.write(signal, async ({ datasets }) =>
          present((await datasets.uploadDataset(messages, call)).dataset, 'dataset'),
        ),
      get: (name: string) => found(this.getDataset(name, { ...options, signal })),
    };
    const patience = this.patience('Uploading a data set', { ...options, signal });
    return await uploadDataset(calls, options, patience, signal);
  }

  /** Uploads a model in Hugging Face layout for jobs to begin at, and waits until the server has checked it. */
  async uploadWeights(options: UploadWeightsOptions): Promise<contract.Weights> {
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const [, call] = split({ ...options, signal });
    const calls = {
      upload: (messages: AsyncIterable<contract.DeepPartial<contract.UploadWeightsRequest>>) =>
        this.streams.write(signal, async ({ weights }) =>
          present((await weights.uploadWeights(messages, call)).weights, 'weights'),
        ),
      get: (name: string) => found(this.getWeights(name, { ...options, signal })),
    };
    return await uploadWeights(calls, options, this.patience('Uploading weights', { ...options, signal }));
  }

  async getWeights(name: string, options: CallOptions = {}): Promise<contract.Weights> {
    const [, call] = split(options);
    return present((await this.services.weights.getWeights({ name }, call)).weights, 'weights');
  }

  /** All uploaded weights, newest first, fetched page by page. */
  listWeights(options: ListWeightsOptions = {}): AsyncGenerator<contract.Weights, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) => this.services.weights.listWeights({ ...fields, pageToken }, call),
      ({ weights }) => weights,
    );
  }

  /** Deletes weights that no unfinished job begins at. */
  async deleteWeights(name: string, options: CallOptions = {}): Promise<void> {
    await deleted((call) => this.services.weights.deleteWeights({ name }, call), options);
  }

  /**
   * Has the server post events of jobs to an https:// URL. The answer contains the key of the signatures, which is not shown again; by this
   * key, retries of the call recognize their own webhook.
   */
  async createWebhook(
    url: string,
    options: CreateWebhookOptions = {},
  ): Promise<{ webhook: contract.Webhook; secret: string }> {
    const [fields, call] = split(options);
    const request = {
      ...fields,
      url,
      webhookId: fields.webhookId || `webhook-${randomUUID()}`,
      secret: fields.secret || `whsec_${randomBytes(32).toString('base64')}`,
    };
    const { webhook, secret } = await this.services.webhooks.createWebhook(request, call);
    return { webhook: present(webhook, 'webhook'), secret };
  }

  /** All webhooks by name, fetched page by page. */
  listWebhooks(options: PageOptions = {}): AsyncGenerator<contract.Webhook, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) => this.services.webhooks.listWebhooks({ ...fields, pageToken }, call),
      ({ webhooks }) => webhooks,
    );
  }

  /** Deletes a webhook and its unsent messages. */
  async deleteWebhook(name: string, options: CallOptions = {}): Promise<void> {
    await deleted((call) => this.services.webhooks.deleteWebhook({ name }, call), options);
  }

  /** Has the server send a message of the type `relora.test` now, and returns the outcome. */
  async testWebhook(name: string, options: CallOptions = {}): Promise<contract.TestWebhookResponse> {
    const [, call] = split(options);
    return await this.services.webhooks.testWebhook({ name }, call);
  }

  /** Messages that wait to be sent and those that were given up (dead letters), oldest first. */
  listWebhookDeliveries(
    name: string,
    options: { state?: contract.WebhookDeliveryState } & PageOptions = {},
  ): AsyncGenerator<contract.WebhookDelivery, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) =>
        this.services.webhooks.listWebhookDeliveries({ ...fields, parent: name, pageToken }, call),
      ({ deliveries }) => deliveries,
    );
  }

  /** Has the server send dead letters again, all of them unless ids are given; returns how many. */
  async resendWebhookDeliveries(
    name: string,
    options: { messageIds?: string[] } & CallOptions = {},
  ): Promise<number> {
    const [fields, call] = split(options);
    return (await this.services.webhooks.resendWebhookDeliveries({ ...fields, name }, call)).deliveryCount;
  }

  async getDataset(name: string, options: CallOptions = {}): Promise<contract.Dataset> {
    const [, call] = split(options);
    return present((await this.services.datasets.getDataset({ name }, call)).dataset, 'dataset');
  }

  /** All data sets, newest first, fetched page by page. */
  listDatasets(options: ListDatasetsOptions = {}): AsyncGenerator<contract.Dataset, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) => this.services.datasets.listDatasets({ ...fields, pageToken }, call),
      ({ datasets }) => datasets,
    );
  }

  /**
   * Deletes a data set that no unfinished job uses; with `validateOnly`, returns what that would free. Until `purgeTime`, undeleteDataset
   * restores it. Deleting it again changes nothing.
   */
  async deleteDataset(name: string, options: DeleteOptions = {}): Promise<contract.DeleteDatasetResponse> {
    const [fields, call] = split(options);
    return await this.services.datasets.deleteDataset({ ...fields, name }, call);
  }

  /** Restores a deleted data set, until its purgeTime. */
  async undeleteDataset(name: string, options: CallOptions = {}): Promise<contract.Dataset> {
    const [, call] = split(options);
    return present((await this.services.datasets.undeleteDataset({ name }, call)).dataset, 'dataset');
  }

  /** First tokens of a data set as the model sees them. */
  async previewDataset(
    name: string,
    options: CallOptions & { tokenCount?: number; split?: contract.DatasetSplit } = {},
  ): Promise<contract.PreviewToken[]> {
    const [fields, call] = split(options);
    return (await this.services.datasets.previewDataset({ ...fields, name }, call)).tokens;
  }

  /**
   * Continues a text. @param model `jobs/…/artifacts/…`, or `jobs/…` for its newest weights
   * @example for await (const { text } of client.generate(job.name, { prompt: 'Once' })) process.stdout.write(text);
   */
  async *generate(
    model: string,
    options: GenerateOptions = {},
  ): AsyncGenerator<contract.GenerateTextResponse, void, undefined> {
    const [fields] = split(options);
    yield* this.repeatedUntilBegun(`Generating with ${model}`, options, ({ models }, call) =>
      models.generateText({ ...fields, model }, call),
    );
  }

  /**
   * Evaluates a model on the held-out parts of data sets and on multiple-choice questions. Unless a deadline is given, this may take an
   * hour. @param model as in `generate`
   * @example await client.evaluate(job.name, { datasets: ['datasets/tales'] });
   */
  async evaluate(
    model: string,
    options: Partial<Omit<contract.EvaluateModelRequest, 'model'>> & CallOptions = {},
  ): Promise<contract.EvaluateModelResponse> {
    const [fields, given] = split(options);
    const call = patientCall(given, this.givenDeadlineMs, evaluateDeadlineMs);
    return await this.services.models.evaluateModel({ ...fields, model }, call);
  }

  /** Version, devices, slots, limits and presets of the server. */
  async serverInfo(options: CallOptions = {}): Promise<contract.GetServerInfoResponse> {
    const [, call] = split(options);
    return await this.services.server.getServerInfo({}, call);
  }

  /** What uses the server's disk: sums, and the largest jobs, data sets and weights. */
  async diskUse(options: { entryCount?: number } & CallOptions = {}): Promise<contract.GetDiskUseResponse> {
    const [fields, call] = split(options);
    return await this.services.server.getDiskUse(fields, call);
  }

  /** The quotas of the tenant, and how much of them is used. */
  async quota(options: CallOptions = {}): Promise<contract.GetQuotaResponse> {
    const [, call] = split(options);
    return await this.services.server.getQuota({}, call);
  }

  /**
   * What jobs used, summed by `groupBy` and `label`, fetched page by page; includes jobs that were purged.
   * @example for await (const { month, deviceHours } of client.usage({ groupBy: [UsageDimension.MONTH] })) console.log(month, deviceHours);
   */
  usage(
    options: Partial<Omit<contract.GetUsageRequest, 'pageToken'>> & CallOptions = {},
  ): AsyncGenerator<contract.UsageRow, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) => this.services.server.getUsage({ ...fields, pageToken }, call),
      ({ rows }) => rows,
    );
  }

  /** Who changed what, newest first, fetched page by page. For operators. */
  listAuditEntries(
    options: { tenant?: string; caller?: string } & PageOptions = {},
  ): AsyncGenerator<contract.AuditEntry, void, undefined> {
    const [fields, call] = split(options);
    return pages(
      (pageToken) => this.services.server.listAuditEntries({ ...fields, pageToken }, call),
      ({ entries }) => entries,
    );
  }

  /**
   * Has the server read its stored files again and verify them: of a job, a data set or weights, of all of one kind (`jobs/-`), or of
   * everything; `problem` is empty for an intact file.
   */
  async *scrub(
    options: { name?: string } & CallOptions = {},
  ): AsyncGenerator<contract.ScrubResponse, void, undefined> {
    const { name = '' } = options;
    yield* this.repeatedUntilBegun(`Scrubbing ${name || 'all'}`, options, ({ server }, call) =>
      server.scrub({ name }, call),
    );
  }

  /** A stream that is retried only until its first message: after that, a retry could give another result, or repeat messages. */
  private async *repeatedUntilBegun<T>(
    what: string,
    options: CallOptions,
    open: (services: Services, call: ReturnType<typeof split>[1]) => AsyncIterable<T>,
  ): AsyncGenerator<T, void, undefined> {
    using stop = this.aborts.link(options.signal);
    const { signal } = stop;
    const [, call] = split({ ...options, signal });
    const patience = this.patience(what, { ...options, signal });
    for (let isBegun = false; ;) {
      try {
        for await (const message of this.streams.read(signal, (services) => open(services, call))) {
          isBegun = true;
          yield message;
        }
        return;
      } catch (error) {
        if (isBegun) throw error;
        await patience.pause(error);
      }
    }
  }

  private async findArtifact(
    name: string,
    { weights, ...options }: Pick<DownloadOptions, 'weights'> & CallOptions,
  ): Promise<contract.Artifact> {
    const [, job, artifactId] = /^(jobs\/[^/]+)(?:\/artifacts\/([^/]+))?$/.exec(name) ?? [];
    if (job === undefined)
      throw new ReloraError(`${JSON.stringify(name)} should be jobs/… or jobs/…/artifacts/…`, {
        code: 'INVALID_ARGUMENT',
      });
    const artifacts = await this.listArtifacts(job, options);
    const isBest = weights === contract.ExportedWeights.BEST;
    const bestStep = isBest ? (await this.getJob(job, options)).progress?.bestStep : undefined;
    if (isBest && (artifactId !== undefined || bestStep === undefined))
      throw new ReloraError(
        artifactId === undefined ? `${job} keeps no best checkpoint yet` : `${name} has its weights already`,
        { code: artifactId === undefined ? 'NOT_FOUND' : 'INVALID_ARGUMENT' },
      );
    // Servers from before ExportWeights set neither state nor format: all their artifacts are finished models.
    const ready = artifacts.filter(
      ({ state, step }) =>
        (bestStep === undefined || step === bestStep) &&
        (state === contract.ArtifactState.READY || state === contract.ArtifactState.UNSPECIFIED),
    );
    const isModel = ({ format }: contract.Artifact) =>
      format === contract.ExportFormat.HUGGING_FACE || format === contract.ExportFormat.UNSPECIFIED;
    const artifact =
      artifactId === undefined
        ? (ready.findLast(isModel) ?? ready.at(-1))
        : artifacts.find((entry) => entry.name === name);
    if (artifact === undefined)
      throw new ReloraError(`${name} has no such artifact yet`, { code: 'NOT_FOUND' });
    if (artifact.state === contract.ArtifactState.PENDING || artifact.state === contract.ArtifactState.FAILED)
      throw new ReloraError(`${name} is ${artifact.state.replace('ARTIFACT_STATE_', '')}, not READY`, {
        code: 'FAILED_PRECONDITION',
        reason: 'ARTIFACT_NOT_READY',
      });
    return artifact;
  }

  private patience(
    what: string,
    { deadlineMs = this.deadlineMs, signal }: CallOptions & { signal: AbortSignal },
    also: readonly StatusName[] = [],
  ): Patience {
    return new Patience({ deadlineMs, retries: this.retries, logger: this.logger, what, signal, also });
  }
}

/** Adds a request id, which makes a retry the same call. */
function identified<Fields extends { requestId?: string }>(fields: Fields): Fields & { requestId: string } {
  return { ...fields, requestId: fields.requestId || randomUUID() };
}

/** Undefined if it does not exist. */
async function found<T>(looking: Promise<T>): Promise<T | undefined> {
  try {
    return await looking;
  } catch (error) {
    if (isReloraError(error) && error.code === 'NOT_FOUND') return undefined;
    throw error;
  }
}

/** Deletes something. If the first answer was lost and the call retried, "not found" means that the first call deleted it. */
async function deleted(
  remove: (call: ReturnType<typeof split>[1]) => Promise<unknown>,
  options: CallOptions,
): Promise<void> {
  let isRepeated = false;
  const [, call] = split(options);
  try {
    await remove({ ...call, onRepeat: () => (isRepeated = true) });
  } catch (error) {
    if (!(isRepeated && isReloraError(error) && error.code === 'NOT_FOUND')) throw error;
  }
}

/** A proxy is set for a whole machine or shell, and easily forgotten, so the error names it. */
function namingProxy(error: ReloraError, { proxy }: Address): ReloraError {
  if (proxy === undefined || error.code !== 'UNAVAILABLE' || error.reason !== '') return error;
  const { code, method } = error;
  const hint = `through the proxy ${proxy.url} of ${proxy.variable}; no_proxy takes hosts to reach without it`;
  return new ReloraError(`${error.message} (${hint})`, { code, method }, { cause: error.cause });
}

function present<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new ReloraError(`The server's answer has no ${what}`, { code: 'INTERNAL' });
  return value;
}
