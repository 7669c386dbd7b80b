import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { trainerEntry } from '../../server/dist/trainer/trainerProcess.js';
import { patienceMs } from '../patience.mjs';
import {
  allEvents,
  briefLease,
  jobWhen,
  newJob,
  openParts,
  runSpec,
  startHalfServer,
  statesOf,
  submit,
  temporaryFolder,
  untilGone,
} from './parts.js';
import { settings, trainingParts, prepare, spec, lossesOf, run, long, tale } from './trainingParts.js';

const limitedTrainer = fileURLToPath(new URL('./limitedTrainer.mjs', import.meta.url));
const never = new AbortController().signal;

describe('the trainer', () => {
  it('trains, seals what it trained, and the text it writes is the same for the same seed', async () => {
    const parts = await trainingParts();
    const job = await run(parts);
    expect(job.failure).toBeNull();
    expect(job).toMatchObject({
      state: 'succeeded',
      attempt: 1,
      progress: { step: 16, stepCount: 16, restartCount: 2, checkpointStep: 16 },
    });
    expect(job.execution?.datasetSha256).toBe((await parts.datasets.find('text'))?.prepared?.manifestSha256);

    const artifact = (await parts.artifacts.newest(job.id))!;
    expect(artifact.files.map(({ fileName }) => fileName)).toEqual(
      expect.arrayContaining(['config.json', 'model.safetensors']),
    );
    for (const file of artifact.files) {
      const bytes = readFileSync(join(artifact.folder, file.fileName));
      expect({ sizeBytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }).toEqual({
        sizeBytes: file.sizeBytes,
        sha256: file.sha256,
      });
    }

    const checkpoint = (await parts.checkpoints.newest(job.id))!;
    const write = async (kind: 'artifact' | 'checkpoint', folder: string, seed: number): Promise<string> => {
      let text = '';
      const task = {
        source: { kind, folder },
        prompt: 'The king',
        tokenCountMax: 12,
        temperature: 0.8,
        topK: 0,
        topP: 0.95,
        seed,
        datasetFolder: kind === 'artifact' ? null : parts.datasets.preparedFolder('text'),
      };
      for await (const piece of parts.tasks.generate(task, never)) text += piece.text;
      return text;
    };
    const text = await write('artifact', artifact.folder, 1);
    expect(text.length).toBeGreaterThan(0);
    expect(await write('artifact', artifact.folder, 1)).toBe(text);
    expect(await write('checkpoint', checkpoint.folder, 1)).toBe(text);

    const tokens = await parts.tasks.previewDataset(
      { preparedFolder: parts.datasets.preparedFolder('text'), split: 'train', tokenCount: 8 },
      never,
    );
    expect(tokens.map((token) => token.text).join('')).toBe('The king');
  });

  it('killed with SIGKILL it is replaced, and the run repeats the uninterrupted one bit for bit', async () => {
    const parts = await trainingParts();
    const whole = await run(parts, long);
    const { id } = await submit(parts, { spec: spec(long) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 6 && progress.checkpointStep !== null);
    process.kill(parts.supervisor.trainerPid(id)!, 'SIGKILL');
    const job = await jobWhen(parts, id, ({ state }) => isTerminal(state));
    expect(job).toMatchObject({ state: 'succeeded', attempt: 2 });
    expect(await lossesOf(parts, id)).toEqual(await lossesOf(parts, whole.id));
    const weights = async (jobId: string) =>
      (await parts.artifacts.newest(jobId))?.files.find(({ fileName }) => fileName === 'model.safetensors')
        ?.sha256;
    expect(await weights(id)).toBe(await weights(whole.id));
  });

  it('whose server is killed ends by itself, and the next server repeats the uninterrupted run bit for bit', async () => {
    const first = await trainingParts();
    const whole = await run(first, long);
    const expected = await lossesOf(first, whole.id);
    await first.close();

    const job = newJob({ jobId: 'job-killed', spec: spec(long) });
    const server = await startHalfServer(first.dataFolder, trainerEntry, job);
    let reported = { sequence: 0, step: 0, pid: 0 };
    for await (const line of createInterface({ input: server.stdout })) {
      reported = { ...reported, ...(JSON.parse(line) as typeof reported) };
      if (reported.step >= 6) server.kill('SIGKILL');
    }
    await untilGone(reported.pid);

    const parts = await openParts({ ...settings, ...briefLease }, first.dataFolder, trainerEntry);
    expect((await allEvents(parts, 'job-killed')).length).toBeGreaterThanOrEqual(reported.sequence);
    await parts.supervisor.start();
    const resumed = await jobWhen(parts, 'job-killed', ({ state }) => isTerminal(state));
    expect(resumed).toMatchObject({ state: 'succeeded', attempt: 2 });
    expect(await lossesOf(parts, 'job-killed')).toEqual(expected);
  });

  const notRead: [string, RegExp, (folder: string) => void][] = [
    ['damaged', /shared.safetensors/, (folder) => truncateSync(join(folder, 'shared.safetensors'), 100)],
    [
      'on a broken disk',
      /EIO/,
      (folder) => {
        rmSync(join(folder, 'manifest.json'));
        symlinkSync('/proc/self/mem', join(folder, 'manifest.json')); // can be opened, and reads give EIO
      },
    ],
  ];
  it.each(notRead)(
    'resumed where its newest checkpoint is %s, it repeats the run from the one before',
    async (_, problem, spoil) => {
      const parts = await trainingParts();
      const whole = await run(parts, long);
      const { id } = await submit(parts, { spec: spec(long) });
      await jobWhen(parts, id, ({ progress }) => progress.step >= 9);
      await parts.control.pause(id);
      const paused = await parts.control.whenSettled(id, AbortSignal.timeout(patienceMs));
      expect(paused?.state).toBe('paused');
      const [newest, before] = await parts.checkpoints.list(id);
      expect(newest?.step).toBe(paused?.progress.step);
      spoil(newest!.folder);

      await parts.control.resume(id);
      expect((await jobWhen(parts, id, ({ state }) => isTerminal(state))).state).toBe('succeeded');
      expect(await statesOf(parts, id)).toEqual([
        'queued',
        'starting',
        'running',
        'paused',
        'queued',
        'starting',
        'running',
        'succeeded',
      ]);
      const events = await allEvents(parts, id);
      expect(events.find(({ body }) => body.kind === 'warning')?.body).toMatchObject({
        reason: 'CHECKPOINT_CORRUPT',
        message: expect.stringMatching(problem) as string,
      });
      expect(events.find(({ attempt, body }) => attempt === 2 && body.kind === 'step')?.body).toMatchObject({
        step: before?.step,
      });
      expect(await lossesOf(parts, id)).toEqual(await lossesOf(parts, whole.id));
    },
  );

  it('fails a run that its data or its specification makes impossible, with the reason', async () => {
    const parts = await trainingParts();
    const tooLong = await run(parts, {
      batch: { sequenceLength: 32_768, sequenceCount: 1, microBatchSequenceCount: 1 },
      model: { ...spec().model, maxPositionEmbeddings: 32_768 },
    });
    expect(tooLong).toMatchObject({ state: 'failed', attempt: 1, failure: { reason: 'DATASET_TOO_SHORT' } });
    const tooSmall = await run(parts, { model: { ...spec().model, vocabSize: 100 } });
    expect(tooSmall).toMatchObject({ state: 'failed', attempt: 1, failure: { reason: 'RUN_MISMATCH' } });
    const missing = await run(parts, { baseWeightsFolder: parts.dataFolder });
    expect(missing).toMatchObject({ state: 'failed', attempt: 1 });
    expect(missing.failure?.message).toContain('config.json');
  });

  it(
    'fails alone and with the reason when it gets no more memory; the next job runs',
    { skip: spawnSync('prlimit', ['--version']).error !== undefined },
    async () => {
      // It limits itself by starting another process, which a sandboxed one may not.
      const parts = await trainingParts({ entry: limitedTrainer, RELORA_SANDBOX: 'off' });
      const tooLarge = await run(parts, { model: { ...spec().model, hiddenSize: 1024, vocabSize: 2 ** 20 } });
      expect(tooLarge).toMatchObject({ state: 'failed', attempt: 1, failure: { reason: 'OUT_OF_MEMORY' } });
      expect(tooLarge.failure?.message).toContain('Memory ran out');
      const next = await run(parts);
      expect([next.state, next.failure]).toEqual(['succeeded', null]);
    },
  );

  it('forked from a checkpoint of a cancelled job repeats the uninterrupted run bit for bit', async () => {
    const parts = await trainingParts();
    const whole = await run(parts, long);
    const { id } = await submit(parts, { spec: spec(long) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 6 && progress.checkpointStep !== null);
    await parts.control.cancel(id);
    await jobWhen(parts, id, ({ state }) => isTerminal(state));
    const { step, folder, manifestSha256 } = (await parts.checkpoints.newest(id))!;
    const origin = { jobId: id, step, folder: basename(folder), manifestSha256 };
    const recomputed = spec({
      ...long,
      recomputation: 'blocks',
      checkpoint: { everyStepCount: 7, keepCount: 2, everySeconds: 0 },
    });
    const forked = await submit(parts, { spec: recomputed, origin });
    await jobWhen(parts, forked.id, ({ progress }) => progress.step >= step + 10);
    // Once more, from a checkpoint of its own.
    process.kill(parts.supervisor.trainerPid(forked.id)!, 'SIGKILL');
    const done = await jobWhen(parts, forked.id, ({ state }) => isTerminal(state));
    expect(done).toMatchObject({ state: 'succeeded', attempt: 2 });
    const losses = await lossesOf(parts, forked.id);
    expect(losses.slice(step)).toEqual((await lossesOf(parts, whole.id)).slice(step));
    expect(losses[step - 1]).toBeUndefined();
  });

  it('forked with other arithmetic, length and rate continues from the weights of the checkpoint', async () => {
    const parts = await trainingParts();
    const ended = await run(parts);
    const { step, folder, manifestSha256 } = (await parts.checkpoints.newest(ended.id))!;
    const origin = { jobId: ended.id, step, folder: basename(folder), manifestSha256 };
    const changed = spec({
      stepCount: 24,
      precision: 'float32',
      learningRate: { ...spec().learningRate, peak: 1e-4 },
      batch: { ...spec().batch, microBatchSequenceCount: 1 },
    });
    const forked = await submit(parts, { spec: changed, origin });
    const done = await jobWhen(parts, forked.id, ({ state }) => isTerminal(state));
    expect(done).toMatchObject({ state: 'succeeded', progress: { step: 28, restartCount: 5 } });
    const [before, after] = [await lossesOf(parts, ended.id), await lossesOf(parts, forked.id)];
    // New weights would start at the logarithm of the vocabulary size.
    expect(after[step]).toBeLessThan((before[0]! + before[step - 1]!) / 2);

    truncateSync(join(folder, 'shared.safetensors'), 100);
    const broken = await submit(parts, { spec: changed, origin });
    expect(await jobWhen(parts, broken.id, ({ state }) => isTerminal(state))).toMatchObject({
      state: 'failed',
      failure: { reason: 'CHECKPOINT_CORRUPT' },
    });
  });

  it('that is stopped by the system is silent, and replaced', async () => {
    const parts = await trainingParts({
      // Many times what a busy machine needs until the process sends its first beat.
      RELORA_TRAINER_SILENCE_SECONDS: '20',
      RELORA_TRAINER_GRACE_SECONDS: '0.2',
    });
    const { id } = await submit(parts, { spec: spec(long) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 2);
    process.kill(parts.supervisor.trainerPid(id)!, 'SIGSTOP');
    await jobWhen(parts, id, ({ attempt, state }) => attempt === 2 && state === 'running');
    expect((await allEvents(parts, id)).find(({ body }) => body.kind === 'warning')?.body).toMatchObject({
      reason: 'TRAINER_RESTARTED',
      message: expect.stringContaining('after 20 s of silence') as string,
    });
    await parts.control.cancel(id);
  });

  it('yields to the service with all of its threads', { skip: process.platform !== 'linux' }, async () => {
    const parts = await trainingParts({ RELORA_TRAINER_NICE: '7', RELORA_THREADS: '2' });
    const { id } = await submit(parts, { spec: spec({ stepCount: 100_000 }) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 2);
    const folder = `/proc/${parts.supervisor.trainerPid(id)}/task`;
    const threads = readdirSync(folder).map((thread) => {
      const [, fields] = readFileSync(join(folder, thread, 'stat'), 'utf8').split(') ');
      return fields!.split(' ')[16]; // the nice value, counting fields from the state on
    });
    expect(threads.length).toBeGreaterThan(2);
    expect(new Set(threads)).toEqual(new Set(['7']));
    await parts.control.cancel(id);
  });

  it.each(['pause', 'cancel'] as const)(
    'hears a %s within one micro-batch, not at the end of its step',
    async (action) => {
      const parts = await trainingParts();
      // A step of a thousand micro-batches: if it were completed it would be reported.
      const batch = { sequenceLength: 16, sequenceCount: 1024, microBatchSequenceCount: 1 };
      const { id } = await submit(parts, { spec: spec({ batch, stepCount: 1000 }) });
      const { progress } = await jobWhen(parts, id, ({ progress }) => progress.step >= 1);
      await parts.control[action](id);
      const settled = await parts.control.whenSettled(id, AbortSignal.timeout(patienceMs));
      expect(settled).toMatchObject({
        state: action === 'pause' ? 'paused' : 'cancelled',
        progress: { step: progress.step, checkpointStep: action === 'pause' ? progress.step : null },
      });
    },
  );

  it('succeeds with the other formats where one cannot be exported, and the artifact says why', async () => {
    const parts = await trainingParts();
    const path = join(parts.dataFolder, 'tale.txt');
    const words = new Set(
      tale(400)
        .toLowerCase()
        .match(/\w+|[^\w\s]+/g),
    );
    const tokenizerJson = JSON.stringify({
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: [],
      normalizer: { type: 'Lowercase' },
      pre_tokenizer: { type: 'Whitespace' },
      post_processor: null,
      decoder: null,
      model: {
        type: 'WordLevel',
        unk_token: '<unk>',
        vocab: Object.fromEntries(['</s>', '<unk>', ...words].map((word, id) => [word, id])),
      },
    });
    const tokenizer = { kind: 'huggingFace', tokenizerJson } as const;
    const dataset = await prepare(parts, parts.tasks, 'words', [{ path, format: 'text' }], { tokenizer });
    expect(dataset.failure).toBeNull();
    const job = await run(parts, {
      dataset: 'datasets/words',
      export: { ...runSpec().export, formats: ['gguf', 'huggingFace'] },
    });
    expect(job).toMatchObject({ state: 'succeeded', failure: null, attempt: 1 });
    expect(job.stateReason).toBe('All steps were taken and the export of gguf-1 failed');
    const { artifacts } = await parts.artifacts.list(job.id, { after: null, artifactsMax: 10 });
    expect(artifacts.map(({ id, state }) => [id, state])).toEqual([
      ['gguf-1', 'failed'],
      ['merged-model-1', 'ready'],
    ]);
    const message =
      'GGUF: expected a tokenizer of byte-level BPE, found one of WordLevel with another decoder';
    expect(artifacts[0]).toMatchObject({ step: 16, failure: { reason: 'EXPORT_IMPOSSIBLE', message } });
    expect((await allEvents(parts, job.id)).map(({ body }) => body)).toContainEqual({
      kind: 'warning',
      reason: 'EXPORT_FAILED',
      message: `The export jobs/${job.id}/artifacts/gguf-1 failed (EXPORT_IMPOSSIBLE): ${message}`,
    });
  });

  it('reads no data from outside of the allowed folders, though a parent becomes a link after the registration', async () => {
    const parts = await openParts(settings, temporaryFolder(), trainerEntry);
    const outside = temporaryFolder();
    const [folder, moved] = ['sub', 'moved'].map((name) => join(parts.dataFolder, name)) as [string, string];
    mkdirSync(folder);
    for (const where of [folder, outside]) writeFileSync(join(where, 'tale.txt'), tale(20));
    const tasks = new TaskRunner(parts.config, parts.log);
    renameSync(folder, moved);
    symlinkSync(outside, folder);
    const file = { path: join(folder, 'tale.txt'), format: 'text' } as const;
    const leaked = await prepare(parts, tasks, 'leaked', [file]);
    expect(leaked).toMatchObject({ state: 'failed', failure: { reason: 'FILE_UNREADABLE' } });
    rmSync(folder);
    symlinkSync(moved, folder); // within the allowed folders a link works like a folder
    expect((await prepare(parts, tasks, 'linked', [file])).state).toBe('ready');
  });

  it('fails data that cannot be read, with the place', async () => {
    const parts = await openParts(settings, temporaryFolder(), trainerEntry);
    const tasks = new TaskRunner(parts.config, parts.log);
    const path = join(parts.dataFolder, 'broken.jsonl');
    writeFileSync(path, '{"text": "one"}\n{"text": "two"\n');
    const dataset = await prepare(parts, tasks, 'broken', [{ path, format: 'jsonl' }]);
    expect(dataset.state).toBe('failed');
    expect(dataset.failure?.message).toContain('line 2');
  });

  it('describes what jobs can run on', async () => {
    const parts = await openParts(settings);
    const { devices } = await new TaskRunner(parts.config, parts.log).describeDevices();
    expect(devices.filter(({ isDefault }) => isDefault)).toHaveLength(1);
    expect(devices.map(({ backend }) => backend)).toEqual(expect.arrayContaining(['native', 'reference']));
    const native = devices.find(({ backend }) => backend === 'native');
    expect(native?.float32Flops).toBeGreaterThan(1e8);
    expect(native?.memoryBytes).toBeGreaterThan(1e8);
  });
});
