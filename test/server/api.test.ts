import { createWriteStream, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  ArtifactKind,
  DatasetState,
  FinishReason,
  FullRankOptimizer,
  JobKind,
  JobPhase,
  JobState,
  Precision,
  type CreateJobResponse,
  type JobEvent,
} from '@relora/sdk/contract';
import { ClientError, Status } from 'nice-grpc';
import { describe, expect, it, onTestFinished } from 'vitest';
import { patienceMs } from '../patience.mjs';
import { jobSpec, openApi, openApiWithArtifact, refusalOf, sha256, uploadOf, type Api } from './apiServer.js';
import { jobWhen, readyDataset, temporaryFolder } from './parts.js';

const uuid = '00000000-0000-4000-8000-00000000000a';

async function openWithDataset(settings: Record<string, string> = {}): Promise<Api> {
  const api = await openApi(settings);
  await readyDataset(api.parts);
  return api;
}

async function eventsOf(api: Api, name: string, afterSequence = 0): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  for await (const { event } of api.training.watchJob({ name, afterSequence })) events.push(event!);
  return events;
}

describe('CreateJob', () => {
  it('answers with the stored job, its cost and its plan', async () => {
    const { training } = await openWithDataset();
    const { job, estimate, plan, warnings } = await training.createJob({
      spec: jobSpec(),
      displayName: 'Tales',
      labels: { team: 'search' },
    });
    expect(job).toMatchObject({
      displayName: 'Tales',
      labels: { team: 'search' },
      state: JobState.QUEUED,
      attempt: 0,
      lastSequence: 1 + warnings.length,
      queuePosition: 1,
      etag: '"1"',
      spec: {
        kind: JobKind.RELORA,
        model: { config: { vocabSize: 257, ropeTheta: 10_000 } },
        learningRate: { peak: 1e-3 },
        precision: Precision.AUTO,
      },
    });
    expect(job!.createTime!.getTime()).toBeGreaterThan(Date.now() - 60_000);
    expect(plan).toMatchObject({ stepCount: 20, warmStartStepCount: 0, restartSteps: [5, 10, 15] });
    expect(plan!.learningRates).toHaveLength(20);
    expect(estimate).toMatchObject({ tokenCount: 320, epochCount: 3.2 });
    expect(estimate!.durationSeconds).toBeGreaterThan(0);
    expect(warnings.map(({ reason }) => reason)).toContain('WARM_START_MISSING');
    expect((await training.getJob({ name: job!.name })).job).toEqual(job);
  });

  it('with validate_only checks everything and stores nothing', async () => {
    const { training } = await openWithDataset();
    const request = { spec: jobSpec(), validateOnly: true, requestId: uuid };
    const { job, plan } = await training.createJob(request);
    expect(job).toMatchObject({ name: '', state: JobState.UNSPECIFIED, spec: { stepCount: 20 } });
    expect(plan!.stepCount).toBe(20);
    expect((await training.listJobs({})).jobs).toEqual([]);
    // Nor is the request id used up.
    expect((await training.createJob({ ...request, validateOnly: false })).job!.name).not.toBe('');
  });

  it('sent a hundred times at once with one request id makes one job', async () => {
    const { training } = await openWithDataset();
    // A client that a busy database delays for too long retries, as the SDK does.
    const create = async (): Promise<CreateJobResponse> =>
      await training.createJob({ spec: jobSpec(), requestId: uuid }).catch(async (error: unknown) => {
        if (!(error instanceof ClientError) || error.code !== Status.UNAVAILABLE) throw error;
        return await create();
      });
    const answers = await Promise.all(Array.from({ length: 100 }, create));
    expect(new Set(answers.map(({ job }) => job!.name)).size).toBe(1);
    expect((await training.listJobs({})).jobs).toHaveLength(1);
  });

  it('that is repeated gives the first job, though it would not be admitted any more', async () => {
    const { training, parts } = await openWithDataset();
    const request = { spec: jobSpec(), requestId: uuid };
    const first = await training.createJob(request);
    await parts.db.updateTable('datasets').set({ state: 'failed', prepared: null }).execute();
    const { info } = await refusalOf((options) => training.createJob({ spec: jobSpec() }, options));
    expect(info.reason).toBe('DATASET_NOT_READY');
    const again = await training.createJob(request);
    expect(again.job).toEqual(first.job);
    expect(again.plan).toEqual(first.plan);
    expect(again.estimate!.peakMemoryBytes).toBe(first.estimate!.peakMemoryBytes);
    const { info: other } = await refusalOf((options) =>
      training.createJob({ ...request, displayName: 'Another' }, options),
    );
    expect(other.reason).toBe('DATASET_NOT_READY');
  });

  it('takes base weights from an allowed folder only, and their shape from config.json', async () => {
    const folder = temporaryFolder();
    const other = temporaryFolder();
    const config = {
      model_type: 'llama',
      hidden_size: 16,
      intermediate_size: 32,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      vocab_size: 300,
    };
    for (const each of [folder, other]) writeFileSync(join(each, 'config.json'), JSON.stringify(config));
    const { training } = await openWithDataset({ RELORA_ALLOWED_FOLDERS: folder });
    const spec = (path: string) => jobSpec('', { model: { baseWeights: { path } } });
    expect((await training.estimateJob({ spec: spec(folder) })).spec!.model).toMatchObject({
      baseWeights: { path: folder, weights: '', artifact: '' },
    });
    for (const path of [other, join(folder, '..'), 'relative', '/nowhere']) {
      expect(
        (await refusalOf((options) => training.createJob({ spec: spec(path) }, options))).fields,
      ).toEqual(['spec.model.base_weights.path']);
    }
    mkdirSync(join(folder, 'broken'));
    createWriteStream(join(folder, 'broken', 'config.json')).end('[1');
    expect(
      (await refusalOf((options) => training.createJob({ spec: spec(join(folder, 'broken')) }, options)))
        .message,
    ).toMatch(/JSON|read/);
  });

  it('says which phase has the peak of memory, and what matrix signs add to a step', async () => {
    const { training } = await openWithDataset();
    const costOf = async (sequenceCount: number) => {
      const spec = jobSpec('', {
        model: {
          config: {
            ...{ hiddenSize: 256, intermediateSize: 512, numHiddenLayers: 2, numAttentionHeads: 4 },
            maxPositionEmbeddings: 32,
          },
        },
        warmStart: { stepCount: 20, optimizer: FullRankOptimizer.MUON },
        batch: { sequenceLength: 32, sequenceCount },
      });
      const { estimate, warnings } = await training.estimateJob({ spec });
      const costly = warnings.filter(({ reason }) => reason === 'OPTIMIZER_COSTLY');
      return { ...estimate!, costly: costly.map(({ message }) => message) };
    };
    const few = await costOf(1);
    expect(few.peakMemoryPhase).toBe(JobPhase.WARM_START);
    expect(few.signCosts).toMatchObject([{ phase: JobPhase.WARM_START }]);
    expect(few.signCosts[0]!.stepRatio).toBeGreaterThan(1);
    expect(few.costly).toMatchObject([
      expect.stringMatching(
        /^An update by MUON takes \d+\.\d times as long as the rest of a step of 32 tokens in the phase WARM_START/,
      ),
    ]);
    const many = await costOf(256);
    expect(many.signCosts[0]!.stepRatio).toBeLessThan(1);
    expect(many.costly).toEqual([]);
  });

  it('refuses what does not fit into memory and says what would', async () => {
    const { training } = await openWithDataset({ RELORA_JOB_MEMORY_BYTES_MAX: '163000000' });
    const spec = jobSpec('', {
      batch: { sequenceLength: 32, sequenceCount: 1024, microBatchSequenceCount: 1024 },
    });
    const refusal = await refusalOf((options) => training.createJob({ spec }, options));
    expect(refusal).toMatchObject({ code: Status.RESOURCE_EXHAUSTED, info: { reason: 'JOB_TOO_LARGE' } });
    const fits = Number(/fit with batch\.micro_batch_sequence_count (\d+)/.exec(refusal.message)?.[1]);
    const smaller = { ...spec, batch: { ...spec.batch, microBatchSequenceCount: fits } };
    const { estimate, warnings } = await training.estimateJob({ spec: smaller });
    expect(estimate!.peakMemoryBytes).toBeLessThanOrEqual(163_000_000);
    expect(warnings.map(({ reason }) => reason)).not.toContain('MEMORY_ABOVE_LIMIT');

    const estimated = await training.estimateJob({ spec });
    expect(estimated.estimate).toMatchObject({ memoryLimitBytes: 163_000_000 });
    expect(estimated.estimate!.peakMemoryBytes).toBeGreaterThan(163_000_000);
    expect(estimated.warnings.find(({ reason }) => reason === 'MEMORY_ABOVE_LIMIT')?.message).toBe(
      refusal.message,
    );
  });
});

describe('ListJobs', () => {
  it('pages through jobs by state and label, newest first or oldest first', async () => {
    const { training } = await openWithDataset();
    const names: string[] = [];
    for (let count = 0; count < 5; count++) {
      names.push(
        (
          await training.createJob({
            jobId: `job-${count}`,
            spec: jobSpec(),
            labels: { parity: String(count % 2) },
          })
        ).job!.name,
      );
    }
    await training.cancelJob({ name: names[0]! });
    const pages = async (request: object) => {
      const found: string[] = [];
      let pageToken = '';
      do {
        const page = await training.listJobs({ pageSize: 2, pageToken, ...request });
        expect(page.jobs.length).toBeLessThanOrEqual(2);
        found.push(...page.jobs.map(({ name }) => name));
        pageToken = page.nextPageToken;
      } while (pageToken !== '');
      return found;
    };
    expect(await pages({ orderBy: 'create_time' })).toEqual(names);
    expect(await pages({})).toEqual([...names].reverse());
    expect(await pages({ labels: { parity: '0' }, orderBy: 'create_time' })).toEqual([
      names[0],
      names[2],
      names[4],
    ]);
    expect(await pages({ states: [JobState.CANCELLED] })).toEqual([names[0]]);
    expect((await training.listJobs({ pageSize: 1_000_000_000 })).jobs).toHaveLength(5);
  });

  it('refuses tokens that were altered or are of another filter, and negative sizes', async () => {
    const { training } = await openWithDataset();
    for (let count = 0; count < 3; count++) await training.createJob({ spec: jobSpec() });
    const { nextPageToken: token } = await training.listJobs({ pageSize: 1 });
    const altered = (token.startsWith('A') ? 'B' : 'A') + token.slice(1);
    for (const request of [
      { pageToken: altered },
      { pageToken: token, orderBy: 'create_time' },
      { pageToken: `${token}=` },
      { pageToken: 'x'.repeat(10_000) },
    ]) {
      expect((await refusalOf((options) => training.listJobs(request, options))).info.reason).toBe(
        'PAGE_TOKEN_INVALID',
      );
    }
    expect(
      (
        await refusalOf((options) =>
          training.listJobs({ pageSize: -1, orderBy: 'name', states: [JobState.UNSPECIFIED] }, options),
        )
      ).fields,
    ).toEqual(['page_size', 'states[0]', 'order_by']);
  });
});

describe('WatchJob', () => {
  it('gives every event from the queue to the end without gaps, then OK; also to those who come late', async () => {
    const api = await openWithDataset();
    const { job } = await api.training.createJob({ spec: jobSpec() });
    const watching = eventsOf(api, job!.name);
    await api.parts.supervisor.start();
    const events = await watching;
    expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
    expect(events.filter(({ final }) => final)).toEqual([events.at(-1)]);
    expect(events.at(-1)!.state).toMatchObject({ from: JobState.RUNNING, to: JobState.SUCCEEDED });
    expect(events.filter(({ step }) => step)).toHaveLength(20);
    expect(events.find(({ artifact }) => artifact)!.artifact!.artifact).toBe(
      `${job!.name}/artifacts/merged-model-1`,
    );
    expect(await eventsOf(api, job!.name, 10)).toEqual(events.slice(10));
    expect(await eventsOf(api, job!.name, events.length)).toEqual([]);
  });

  it.each([
    ['', 0],
    [', also while changes without events keep waking the watcher, as a shared store does', 10],
  ])('is alive in silence: heartbeats repeat the newest sequence%s', async (_, wakeMs) => {
    const api = await openWithDataset({ RELORA_HEARTBEAT_SECONDS: '0.1' });
    const { job } = await api.training.createJob({ spec: jobSpec() });
    const { id, state, stopRequest, updateNumber } = (await api.parts.store.find(
      job!.name.slice('jobs/'.length),
    ))!;
    const wake = () => api.parts.feed.announce({ topic: 'job', id, state, stopRequest, updateNumber });
    const timer = wakeMs > 0 ? setInterval(wake, wakeMs) : undefined;
    onTestFinished(() => clearInterval(timer));
    const events: JobEvent[] = [];
    const { lastSequence } = job!;
    const afterSequence = lastSequence - 1;
    for await (const { event } of api.training.watchJob({ name: job!.name, afterSequence }))
      if (events.push(event!) === 3) break;
    expect(events.map(({ sequence, heartbeat }) => [sequence, heartbeat !== undefined])).toEqual([
      [lastSequence, false],
      [lastSequence, true],
      [lastSequence, true],
    ]);
  });

  it('gives its place back when the client leaves', async () => {
    const api = await openWithDataset({ RELORA_WATCHERS_MAX: '1', RELORA_HEARTBEAT_SECONDS: '0.1' });
    const { job } = await api.training.createJob({ spec: jobSpec() });
    for await (const _ of api.training.watchJob({ name: job!.name })) break;
    for (;;) {
      try {
        for await (const { event } of api.training.watchJob({ name: job!.name })) {
          expect(event!.sequence).toBe(1);
          return;
        }
      } catch (error) {
        // The server notices a little later than the client that a stream was left.
        if (!(error instanceof ClientError) || error.code !== Status.RESOURCE_EXHAUSTED) throw error;
      }
    }
  });
});

describe('a running job', () => {
  it('is paused with a checkpoint, resumed and cancelled, each answered when it is done', async () => {
    const api = await openWithDataset();
    await api.parts.supervisor.start();
    const { job } = await api.training.createJob({ spec: jobSpec('slow', { stepCount: 1000 }) });
    const { name } = job!;
    const id = name.slice('jobs/'.length);
    await jobWhen(api.parts, id, ({ progress }) => progress.step >= 2);
    const paused = (await api.training.pauseJob({ name, requestId: uuid })).job!;
    expect(paused.state).toBe(JobState.PAUSED);
    expect(paused.progress!.checkpointStep).toBeGreaterThan(0);
    expect((await api.training.pauseJob({ name, requestId: uuid })).job!.state).toBe(JobState.PAUSED);
    expect((await api.training.resumeJob({ name, etag: paused.etag })).job!.state).toBe(JobState.QUEUED);
    await jobWhen(api.parts, id, ({ state, attempt }) => state === 'running' && attempt === 2);
    expect((await api.training.cancelJob({ name })).job!.state).toBe(JobState.CANCELLED);
    expect((await api.training.cancelJob({ name })).job!.state).toBe(JobState.CANCELLED);
    expect((await refusalOf((options) => api.training.pauseJob({ name }, options))).info.reason).toBe(
      'JOB_STATE_WRONG',
    );
  });
});

describe('an artifact', () => {
  it('is listed, and downloaded from any offset', async () => {
    const { api, job, artifact } = await openApiWithArtifact();
    const { artifacts } = await api.artifacts.listArtifacts({ parent: job });
    expect(artifacts).toMatchObject([
      {
        name: artifact,
        kind: ArtifactKind.MERGED_MODEL,
        sizeBytes: 10,
        step: 20,
        files: [{ fileName: 'config.json' }],
      },
    ]);
    for (const offsetBytes of [0, 3, 10]) {
      const pieces: Buffer[] = [];
      let first: object | undefined;
      for await (const { data, file } of api.artifacts.downloadArtifact({
        name: artifact,
        fileName: 'config.json',
        offsetBytes,
      })) {
        first ??= file;
        pieces.push(data);
      }
      expect(first).toMatchObject({ fileName: 'config.json', sizeBytes: 10 });
      expect(Buffer.concat(pieces).toString()).toBe('0123456789'.slice(offsetBytes));
    }
    expect(
      (
        await refusalOf((options) =>
          api.artifacts.downloadArtifact(
            { name: artifact, fileName: 'config.json', offsetBytes: -1 },
            options,
          ),
        )
      ).code,
    ).toBe(Status.OUT_OF_RANGE);
  });

  it('writes text from the checkpoint that it began to load, which the job deletes meanwhile', async () => {
    // The trainer's stand-in signals through a file, which a sandboxed one may not write.
    const api = await openApi({ RELORA_SANDBOX: 'off' });
    await readyDataset(api.parts);
    await api.parts.supervisor.start();
    const spec = jobSpec('wait', { checkpoint: { everyStepCount: 1 } });
    const { job } = await api.training.createJob({ spec });
    for await (const { event } of api.training.watchJob({ name: job!.name }))
      if (event!.checkpoint?.step === 3) break;
    const folder = join(api.parts.dataFolder, 'jobs', job!.name.slice('jobs/'.length));
    const prompt = 'loseCheckpoint';
    const pieces = [];
    for await (const piece of api.model.generateText({ model: job!.name, prompt, tokenCountMax: 3 }))
      pieces.push(piece);
    expect(pieces.map(({ text }) => text).join('')).toBe('1 2 3 ');
    // Then its folder goes, too.
    const loaded = join(folder, 'checkpoints', 'step-3-1');
    await expect.poll(() => existsSync(loaded), { timeout: patienceMs }).toBe(false);
  });

  it('writes text, as its job does', async () => {
    const { api, job, artifact } = await openApiWithArtifact();
    for (const model of [artifact, job]) {
      const pieces = [];
      for await (const piece of api.model.generateText({ model, prompt: 'Once', tokenCountMax: 3 }))
        pieces.push(piece);
      expect(pieces.map(({ text }) => text).join('')).toBe('1 2 3 ');
      expect(pieces.at(-1)).toMatchObject({ tokenCount: 3, finishReason: FinishReason.TOKEN_COUNT });
    }
    const wild = { model: 'x', tokenCountMax: 0, temperature: NaN, topK: -1, topP: 0, seed: -1 };
    expect((await refusalOf((options) => api.model.generateText(wild, options))).fields).toEqual([
      'temperature',
      'token_count_max',
      'top_k',
      'top_p',
      'seed',
      'model',
    ]);
  });
});

describe('an upload', () => {
  const text = Buffer.from('Once upon a time there was an adapter of rank four.\n'.repeat(100));

  it('resumes where it broke, and ends with a data set that is preparing', async () => {
    const { datasets } = await openApi();
    await refusalOf((options) =>
      datasets.uploadDataset(uploadOf(text, [[0, text.subarray(0, 100)]]), options),
    );
    const { dataset } = await datasets.getDataset({ name: 'datasets/tales' });
    expect(dataset).toMatchObject({
      state: DatasetState.UPLOADING,
      files: [{ receivedBytes: 100, sha256: sha256(text) }],
    });
    const done = await datasets.uploadDataset(uploadOf(text, [[100, text.subarray(100)]]));
    expect(done.dataset).toMatchObject({
      name: 'datasets/tales',
      state: DatasetState.PREPARING,
      spec: { tokenizer: { bytes: {} }, heldOutShare: 0.01, textField: 'text' },
    });
    // A retry after a lost answer gets the same result.
    expect((await datasets.uploadDataset(uploadOf(text))).dataset!.state).toBe(DatasetState.PREPARING);
    expect((await datasets.listDatasets({})).datasets.map(({ name }) => name)).toEqual(['datasets/tales']);
  });

  it('of a client that is silent ends when the server stops, and what came stays', async () => {
    const { datasets, parts, stopping } = await openApi();
    let release = (): void => {};
    async function* silent() {
      yield* uploadOf(text, [[0, text.subarray(0, 100)]]);
      await new Promise<void>((resolve) => (release = resolve));
    }
    const refused = refusalOf((options) => datasets.uploadDataset(silent(), options));
    const received = async () => (await parts.datasets.find('tales'))?.files[0]?.receivedBytes;
    while ((await received()) !== 100) await new Promise((resolve) => setTimeout(resolve, 5));
    stopping.abort();
    expect((await refused).info.reason).toBe('SERVER_STOPPING');
    expect(await received()).toBe(100);
    release();
  });

  it('is refused with every bad field of its header', async () => {
    const { datasets } = await openApi();
    async function* wrong() {
      yield {
        header: {
          datasetId: 'T',
          files: [{ fileName: '../x.txt', sizeBytes: -1, sha256: 'no' }, { serverPath: '/etc/passwd' }],
          spec: { heldOutShare: 0.9, seed: -1, tokenizer: { trainedBpe: { vocabularySize: 3 } } },
        },
      };
    }
    expect((await refusalOf((options) => datasets.uploadDataset(wrong(), options))).fields).toEqual([
      'header.dataset_id',
      'header.spec.tokenizer.trained_bpe.vocabulary_size',
      'header.spec.held_out_share',
      'header.spec.seed',
      'header.files[0].file_name',
      'header.files[0].sha256',
      'header.files[0].size_bytes',
      'header.files[1].server_path',
      'header.files',
    ]);
    async function* chunkFirst() {
      yield { chunk: { fileIndex: 0, offsetBytes: 0, data: text } };
    }
    expect((await refusalOf((options) => datasets.uploadDataset(chunkFirst(), options))).fields).toEqual([
      'header',
    ]);
  });

  it('names files on the server instead, when the operator allows it', async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, 'tales.txt'), text);
    const { datasets } = await openApi({ RELORA_ALLOWED_FOLDERS: folder });
    async function* header() {
      yield { header: { datasetId: 'tales', files: [{ serverPath: join(folder, 'tales.txt') }] } };
    }
    expect((await datasets.uploadDataset(header())).dataset).toMatchObject({
      state: DatasetState.PREPARING,
      files: [{ sizeBytes: text.length }],
    });
  });
});

describe('GetServerInfo', () => {
  it('says what the server is, runs and allows', async () => {
    const api = await openWithDataset();
    await api.training.createJob({ spec: jobSpec() });
    const info = await api.server.getServerInfo({});
    expect(info).toMatchObject({ version: '1.2.3', slotCount: 1, runningJobCount: 0, queuedJobCount: 1 });
    expect(info.devices).toMatchObject([
      { backend: 'native', isDefault: true, autoPrecision: Precision.BFLOAT16, bfloat16Flops: 2e11 },
    ]);
    expect(info.presets.find(({ name }) => name === 'llama-60m')).toMatchObject({
      config: { hiddenSize: 512 },
    });
    expect(info.limits.RELORA_RANK_MAX).toBe('4096');
  });
});
