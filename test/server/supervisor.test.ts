import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { TaskFailed, TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { patienceMs } from '../patience.mjs';
import {
  allEvents,
  claim,
  jobWhen,
  openParts,
  readyDataset,
  runSpec,
  scriptedTrainer,
  statesOf,
  submit,
  temporaryFolder,
  type Parts,
} from './parts.js';

const ended = (job: { state: Parameters<typeof isTerminal>[0] }): boolean => isTerminal(job.state);

async function startedParts(settings: Record<string, string> = {}, dataFolder?: string): Promise<Parts> {
  const parts = await openParts(settings, dataFolder);
  await readyDataset(parts);
  await parts.supervisor.start();
  return parts;
}

async function runToEnd(parts: Parts, script: string) {
  const { id } = await submit(parts, { spec: runSpec(script) });
  return await jobWhen(parts, id, ended);
}

describe('a trainer process', () => {
  it('takes a job from the queue to its artifact, every event in order', async () => {
    const parts = await startedParts();
    const job = await runToEnd(parts, '');
    expect(job).toMatchObject({
      state: 'succeeded',
      attempt: 1,
      progress: { step: 20, stepCount: 20, trainedTokens: 320, checkpointStep: 20 },
    });
    expect(job.execution?.backend).toBe('reference');
    expect(await statesOf(parts, job.id)).toEqual(['queued', 'starting', 'running', 'succeeded']);
    const events = await allEvents(parts, job.id);
    expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
    expect(events.filter(({ final }) => final)).toEqual([events.at(-1)]);
    expect((await parts.artifacts.newest(job.id))?.step).toBe(20);
    // Two are kept, both on disk and in the store.
    const kept = (await parts.checkpoints.list(job.id)).map(({ folder }) => folder);
    expect(kept.map((folder) => readFileSync(join(folder, 'manifest.json'), 'utf8'))).toEqual(['20', '15']);
    await parts.close();
    expect(readdirSync(join(parts.dataFolder, 'jobs', job.id, 'checkpoints')).sort()).toEqual([
      'step-15-1',
      'step-20-1',
    ]);
  });

  it('that crashes is replaced and resumes from the last checkpoint', async () => {
    const parts = await startedParts();
    const job = await runToEnd(parts, 'crashAfterCheckpoint');
    expect(job).toMatchObject({ state: 'succeeded', attempt: 3 });
    expect(await statesOf(parts, job.id)).toEqual([
      'queued',
      'starting',
      'running',
      'queued',
      'starting',
      'running',
      'queued',
      'starting',
      'running',
      'succeeded',
    ]);
    const events = await allEvents(parts, job.id);
    expect(events.flatMap(({ body }) => (body.kind === 'warning' ? [body.reason] : []))).toEqual([
      'TRAINER_RESTARTED',
      'TRAINER_RESTARTED',
    ]);
    const firstSteps = [2, 3].map(
      (attempt) => events.find((event) => event.attempt === attempt && event.body.kind === 'step')?.body,
    );
    expect(firstSteps).toMatchObject([{ step: 5 }, { step: 5 }]);
  });

  it.each([
    ['crash', 'was ended by SIGSEGV', 'TRAINER_CRASHED'],
    ['exit0', 'ended with exit code 0', 'TRAINER_CRASHED'],
    ['exitAtOnce', 'ended with exit code 0', 'TRAINER_CRASHED'],
    ['heap', 'because memory ran out', 'OUT_OF_MEMORY'],
  ])(
    'that always ends by itself (%s) without progress fails its job after three attempts',
    async (script, what, reason) => {
      const parts = await startedParts();
      const job = await runToEnd(parts, script);
      expect(job).toMatchObject({ state: 'failed', attempt: 3, failure: { reason } });
      expect(job.failure?.message).toContain(what);
      expect(job.failure?.message).toContain('3 attempts in a row made no new checkpoint');
    },
  );

  it('that dies in the same export again and again gives up that format, and its job succeeds without it', async () => {
    const parts = await startedParts();
    const job = await runToEnd(parts, 'crashInExport');
    expect(job).toMatchObject({ state: 'succeeded', failure: null, attempt: 4 });
    expect(job.stateReason).toBe('All steps were taken and the export of gguf-3 failed');
    const { artifacts } = await parts.artifacts.list(job.id, { after: null, artifactsMax: 10 });
    expect(artifacts.map(({ id, state }) => [id, state])).toEqual([
      ['gguf-3', 'failed'],
      ['merged-model-4', 'ready'],
    ]);
    expect(artifacts[0]!.failure).toMatchObject({ reason: 'TRAINER_CRASHED' });
    expect(artifacts[0]!.failure!.message).toContain('3 attempts in a row ended so');
    const warnings = (await allEvents(parts, job.id)).flatMap(({ body }) =>
      body.kind === 'warning' ? [body.reason] : [],
    );
    expect(warnings).toEqual(['TRAINER_RESTARTED', 'TRAINER_RESTARTED', 'EXPORT_FAILED']);
  });

  it('that dies in an export has not failed its training: such ends count for the format alone', async () => {
    const parts = await startedParts({ RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '4' });
    const job = await runToEnd(parts, 'crashAroundExport');
    // Attempts 1, 2 and 4 count for the job, whose limit is four; attempt 3 for the export.
    expect(job).toMatchObject({ state: 'succeeded', failure: null, attempt: 5 });
    const { artifacts } = await parts.artifacts.list(job.id, { after: null, artifactsMax: 10 });
    expect(artifacts.map(({ id, state }) => [id, state])).toEqual([['merged-model-5', 'ready']]);
  });

  it('that dies before every second checkpoint is given up after three crashes in a row', async () => {
    const parts = await startedParts();
    const job = await runToEnd(parts, 'killAlways');
    // The first attempt saved a checkpoint at step 5, and its crash counts as the first without progress.
    expect(job).toMatchObject({ state: 'failed', attempt: 3, progress: { checkpointStep: 5 } });
  });

  it('that blocks and does not hear SIGTERM is killed and replaced', async () => {
    const parts = await startedParts({
      // Many times what a busy machine needs until the process has its handler.
      RELORA_TRAINER_SILENCE_SECONDS: '20',
      RELORA_TRAINER_GRACE_SECONDS: '0.2',
      RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1',
    });
    const job = await runToEnd(parts, 'block');
    expect(job).toMatchObject({ state: 'failed', failure: { reason: 'TRAINER_CRASHED' } });
    expect(job.failure?.message).toContain('was ended by SIGKILL after 20 s of silence');
  });

  it('that computes for longer than it may be silent is left alone', async () => {
    const parts = await startedParts({ RELORA_TRAINER_SILENCE_SECONDS: '10' });
    expect(await runToEnd(parts, 'compute')).toMatchObject({ state: 'succeeded', attempt: 1 });
  });

  it('that computes without end is killed and replaced', async () => {
    const parts = await startedParts({
      RELORA_TRAINER_BUSY_SECONDS: '10',
      RELORA_TRAINER_GRACE_SECONDS: '0.2',
      RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1',
    });
    const job = await runToEnd(parts, 'spin');
    expect(job).toMatchObject({ state: 'failed', failure: { reason: 'TRAINER_CRASHED' } });
    expect(job.failure?.message).toContain(
      'was ended by SIGKILL after 10 s in which it computed and heard nothing',
    );
  });

  it.each([
    ['garbage', 'something that is not a message'],
    ['skipNumber', 'after'],
    ['flood', 'did not wait for acknowledgements'],
    ['foreignCheckpoint', 'outside of its folder'],
    ['climbingCheckpoint', 'outside of its folder'],
    ['startedTwice', 'does not fit its job'],
    ['checkpointTwice', 'does not fit its job'],
    ['neverStarted', 'does not fit its job'],
  ])('that breaks the protocol (%s) fails its job, and the next job runs', async (script, what) => {
    const parts = await startedParts();
    const job = await runToEnd(parts, script);
    expect(job).toMatchObject({ state: 'failed', attempt: 1, failure: { reason: 'TRAINER_PROTOCOL' } });
    expect(job.failure?.message).toContain(what);
    expect((await runToEnd(parts, '')).state).toBe('succeeded');
    expect(parts.storeFailures).toEqual([]);
  });

  it('that reports a divergence fails its job with that reason, and is not tried again', async () => {
    const parts = await startedParts();
    const job = await runToEnd(parts, 'diverge');
    expect(job).toMatchObject({
      state: 'failed',
      attempt: 1,
      failure: { reason: 'TRAINING_DIVERGED', message: 'Step 3 has loss NaN' },
    });
    const skipped = (await allEvents(parts, job.id)).find(({ body }) => body.kind === 'step' && body.skipped);
    expect(skipped?.body).toMatchObject({ loss: NaN, gradientNorm: Infinity });
  });

  it('that finds the disk full pauses its job, which can be resumed', async () => {
    const parts = await startedParts();
    const { id } = await submit(parts, { spec: runSpec('fullDisk') });
    const paused = await jobWhen(parts, id, ({ state }) => state === 'paused');
    expect(paused.stateReason).toContain('make room, then resume the job');
    await parts.control.resume(id);
    expect((await jobWhen(parts, id, ended)).state).toBe('succeeded');
  });

  it('leaves no folder that no row names', async () => {
    const parts = await startedParts();
    const job = await runToEnd(parts, 'orphans');
    expect(job.state).toBe('succeeded');
    await parts.close();
    expect(readdirSync(join(parts.dataFolder, 'jobs', job.id, 'checkpoints')).sort()).toEqual([
      'step-15-2',
      'step-20-2',
    ]);
  });

  it('skips a corrupt checkpoint and says so', async () => {
    const parts = await openParts();
    await readyDataset(parts);
    const { id } = await submit(parts, { spec: runSpec('corruptFirst') });
    const key = { jobId: id, attempt: (await claim(parts)).attempt };
    const checkpoint = (step: number) => ({
      timeMs: Date.now(),
      body: {
        kind: 'checkpoint' as const,
        step,
        path: join(parts.dataFolder, 'jobs', id, 'checkpoints', `step-${step}-1`),
        sizeBytes: 1,
        manifestSha256: 'a'.repeat(64),
        seconds: 0,
      },
    });
    await parts.attempts.append(key, [checkpoint(5), checkpoint(10)]);
    await parts.attempts.stopped(key, 'The server stopped');
    await parts.supervisor.start();
    expect(await jobWhen(parts, id, ended)).toMatchObject({ state: 'succeeded', attempt: 2 });
    const events = await allEvents(parts, id);
    const warning = events.find(({ body }) => body.kind === 'warning')?.body;
    expect(warning).toMatchObject({
      reason: 'CHECKPOINT_CORRUPT',
      message: expect.stringContaining('step-10-1'),
    });
    expect(events.find(({ body }) => body.kind === 'step')?.body).toMatchObject({ step: 5 });
  });

  it('does not export twice when it dies after the export', async () => {
    const parts = await startedParts();
    const job = await runToEnd(parts, 'crashAfterExport');
    expect(job).toMatchObject({ state: 'succeeded', attempt: 2 });
    expect(
      (await parts.artifacts.list(job.id, { after: null, artifactsMax: 10 })).artifacts.map(({ id }) => id),
    ).toEqual(['merged-model-1']);
    expect((await allEvents(parts, job.id)).filter(({ body }) => body.kind === 'artifact')).toHaveLength(1);
  });

  it('fails a job whose data set is gone', async () => {
    const parts = await startedParts();
    const { id } = await submit(parts, { spec: runSpec('', { dataset: 'datasets/other' }) });
    expect(await jobWhen(parts, id, ended)).toMatchObject({
      state: 'failed',
      failure: { reason: 'DATASET_NOT_READY' },
    });
  });
});

describe('stopping', () => {
  it('a pause saves a checkpoint at the present step, and a resumed job continues from it', async () => {
    const parts = await startedParts();
    const { id } = await submit(parts, { spec: runSpec('wait') });
    await jobWhen(parts, id, ({ progress }) => progress.step === 3);
    const asked = await parts.control.pause(id);
    expect(asked).toMatchObject({ outcome: 'done', job: { state: 'running', stopRequest: 'pause' } });
    const paused = await parts.control.whenSettled(id, AbortSignal.timeout(patienceMs));
    expect(paused).toMatchObject({ state: 'paused', stopRequest: null, stateReason: 'Paused on request' });
    expect((await parts.checkpoints.newest(id))?.step).toBe(paused?.progress.step);
    writeFileSync(join(parts.dataFolder, 'jobs', id, 'go'), '');
    await parts.control.resume(id);
    const job = await jobWhen(parts, id, ended);
    expect(job).toMatchObject({ state: 'succeeded', attempt: 2 });
    const steps = (await allEvents(parts, id)).flatMap(({ body }) =>
      body.kind === 'step' ? [body.step] : [],
    );
    expect(steps).toEqual(Array.from({ length: 20 }, (_, step) => step));
  });

  it('a cancel ends the trainer without a checkpoint', async () => {
    const parts = await startedParts();
    const { id } = await submit(parts, { spec: runSpec('wait') });
    await jobWhen(parts, id, ({ progress }) => progress.step === 3);
    await parts.control.cancel(id);
    expect(await jobWhen(parts, id, ended)).toMatchObject({
      state: 'cancelled',
      stateReason: 'Cancelled on request',
    });
    expect(await parts.checkpoints.list(id)).toEqual([]);
  });

  it('a trainer that does not stop in its grace time is killed, and the wish is honored', async () => {
    const parts = await startedParts({ RELORA_TRAINER_GRACE_SECONDS: '0.2' });
    const { id } = await submit(parts, { spec: runSpec('deaf', { stepCount: 100_000 }) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 6);
    await parts.control.pause(id);
    const paused = await parts.control.whenSettled(id, AbortSignal.timeout(patienceMs));
    expect(paused).toMatchObject({ state: 'paused' });
    // A checkpoint due by steps, however many were done until the kill; the stop did not request one.
    const { step } = (await parts.store.find(id))!.progress;
    expect((await parts.checkpoints.newest(id))?.step).toBe(5 * Math.floor(step / 5));
  });

  it('a server that stops saves a checkpoint of each job and queues it; the next server resumes it', async () => {
    const dataFolder = temporaryFolder();
    const first = await startedParts({}, dataFolder);
    const { id } = await submit(first, { spec: runSpec('wait') });
    await jobWhen(first, id, ({ progress }) => progress.step === 3);
    await first.supervisor.stop(patienceMs);
    const left = await first.store.find(id);
    expect(left).toMatchObject({ state: 'queued', progress: { checkpointStep: left?.progress.step } });
    await first.close();
    writeFileSync(join(dataFolder, 'jobs', id, 'go'), '');
    const second = await startedParts({}, dataFolder);
    const job = await jobWhen(second, id, ended);
    expect(job).toMatchObject({ state: 'succeeded', attempt: 2 });
    const steps = (await allEvents(second, id)).flatMap(({ body }) =>
      body.kind === 'step' ? [body.step] : [],
    );
    expect(steps).toEqual(Array.from({ length: 20 }, (_, step) => step));
  });

  it('slots bound what runs at once, and a higher priority goes first', async () => {
    const parts = await openParts({ RELORA_SLOTS: '2' });
    await readyDataset(parts);
    const ids: string[] = [];
    for (const priority of [0, 0, 5])
      ids.push((await submit(parts, { spec: runSpec('wait', { priority }) })).id);
    expect(await Promise.all(ids.map(async (id) => (await parts.store.find(id))?.queuePosition))).toEqual([
      2, 3, 1,
    ]);
    await parts.supervisor.start();
    await jobWhen(parts, ids[2]!, ({ progress }) => progress.step === 3);
    await jobWhen(parts, ids[0]!, ({ progress }) => progress.step === 3);
    expect(await parts.store.find(ids[1]!)).toMatchObject({ state: 'queued', queuePosition: 1 });
    expect(parts.supervisor.runningCount).toBe(2);
    mkdirSync(join(parts.dataFolder, 'jobs', ids[1]!), { recursive: true });
    for (const id of ids) writeFileSync(join(parts.dataFolder, 'jobs', id, 'go'), '');
    for (const id of ids) expect((await jobWhen(parts, id, ended)).state).toBe('succeeded');
  });
});

describe('a task', () => {
  const tasks = (parts: Parts): TaskRunner => new TaskRunner(parts.config, parts.log, scriptedTrainer);
  const generation = (prompt: string) => ({
    source: { kind: 'artifact' as const, folder: '/' },
    prompt,
    tokenCountMax: 5,
    temperature: 0,
    topK: 0,
    topP: 1,
    seed: 0,
    datasetFolder: '/',
  });

  it('streams its parts in order and ends', async () => {
    const pieces = [];
    for await (const piece of tasks(await openParts()).generate(
      generation('Once'),
      AbortSignal.timeout(patienceMs),
    ))
      pieces.push(piece);
    expect(pieces.map(({ text }) => text).join('')).toBe('1 2 3 4 5 ');
    expect(pieces.at(-1)?.finishReason).toBe('tokenCount');
  });

  it('that crashes, fails or is given up is an error of its caller alone', async () => {
    const runner = tasks(await openParts());
    const run = async (prompt: string, signal: AbortSignal) => {
      for await (const _piece of runner.generate(generation(prompt), signal)) /* nothing comes */ ;
    };
    await expect(run('crash', AbortSignal.timeout(patienceMs))).rejects.toMatchObject({
      reason: 'TASK_CRASHED',
    });
    await expect(run('fail', AbortSignal.timeout(patienceMs))).rejects.toMatchObject({
      reason: 'DATASET_LINE_BROKEN',
      message: 'Line 3 is not JSON',
    });
    await expect(run('hang', AbortSignal.timeout(200))).rejects.toThrow(TaskFailed);
  });

  it('waits for a place, and leaves the wait when it is given up', async () => {
    const runner = tasks(await openParts({ RELORA_TASKS_MAX: '2' }));
    const giveUp = new AbortController();
    const hanging = [1, 2].map(
      async () =>
        await runner.previewDataset({ preparedFolder: 'hang', split: 'train', tokenCount: 1 }, giveUp.signal),
    );
    const third = runner.previewDataset(
      { preparedFolder: 'x', split: 'train', tokenCount: 1 },
      AbortSignal.timeout(300),
    );
    await expect(third).rejects.toMatchObject({ reason: 'TASK_ABORTED' });
    const fourth = runner.previewDataset(
      { preparedFolder: 'x', split: 'train', tokenCount: 1 },
      AbortSignal.timeout(patienceMs),
    );
    const hung = Promise.allSettled(hanging);
    giveUp.abort();
    await expect(fourth).resolves.toEqual([]);
    expect(await hung).toMatchObject([
      { reason: { reason: 'TASK_ABORTED' } },
      { reason: { reason: 'TASK_ABORTED' } },
    ]);
  });
});
