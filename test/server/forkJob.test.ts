import {
  adapterSettings,
  batchSettings,
  checkpointSettings,
  defaultRunSpec,
  evaluationSettings,
  exportSettings,
  learningRateSettings,
  modelSettings,
  optimizerSettings,
  runSettings,
  sampleSettings,
  stopSettings,
  streamSettings,
  warmStartSettings,
  type Settings,
} from '@relora/engine/plan';
import { JobState, MomentType, Recomputation, type Job } from '@relora/sdk/contract';
import { Status } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import { firstOmittedAnew, problemsOfFork } from '../../server/dist/api/forkSpec.js';
import { fieldName } from '../../server/dist/api/settings.js';
import { jobSpec, openApi, refusalOf, type Api } from './apiServer.js';
import { jobWhen, newJob, readyDataset } from './parts.js';

const uuid = '00000000-0000-4000-8000-000000000001';

/** A job that diverged after checkpoints at steps 5 and 10, created by the scripted trainer. */
async function openWithFailedJob(cycleStepCount?: number): Promise<{ api: Api; failed: Job }> {
  const api = await openApi({ RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1' });
  await readyDataset(api.parts);
  await api.parts.supervisor.start();
  const spec = jobSpec('killAlways');
  const { job } = await api.training.createJob({
    spec: cycleStepCount === undefined ? spec : { ...spec, adapter: { ...spec.adapter, cycleStepCount } },
    displayName: 'First',
    labels: { team: 'search' },
  });
  return { api, failed: await ended(api, job!.name) };
}

async function ended(api: Api, name: string): Promise<Job> {
  for await (const { event } of api.training.watchJob({ name })) if (event!.final) break;
  return (await api.training.getJob({ name })).job!;
}

describe('ForkJob', () => {
  it('makes a new job that begins at the newest checkpoint, with the changes and all else as it was', async () => {
    const { api, failed } = await openWithFailedJob();
    expect(failed).toMatchObject({ state: JobState.FAILED, progress: { checkpointStep: 5 } });
    const changes = {
      recomputation: Recomputation.BLOCKS,
      optimizer: { momentType: MomentType.INT8 },
      learningRate: { peak: 5e-4 },
      batch: { microBatchSequenceCount: 1 },
      sample: { prompt: 'behave' },
    };
    const { job, plan } = await api.training.forkJob({ name: failed.name, spec: changes });
    expect(job).toMatchObject({
      displayName: 'First',
      labels: { team: 'search' },
      origin: { job: failed.name, step: 5 },
      progress: { step: 5, stepCount: 20, restartCount: 1, trainedTokens: 80, checkpointStep: 5 },
    });
    expect(job!.spec).toEqual({
      ...failed.spec,
      recomputation: Recomputation.BLOCKS,
      optimizer: { ...failed.spec!.optimizer, momentType: MomentType.INT8 },
      learningRate: { ...failed.spec!.learningRate, peak: 5e-4 },
      batch: { ...failed.spec!.batch, microBatchSequenceCount: 1 },
      sample: { ...failed.spec!.sample, prompt: 'behave' },
    });
    expect(plan!.stepCount).toBe(20);

    const done = await ended(api, job!.name);
    expect(done).toMatchObject({ state: JobState.SUCCEEDED, attempt: 1 });
    const steps: number[] = [];
    for await (const { event } of api.training.watchJob({ name: job!.name }))
      if (event!.step) steps.push(event!.step.step);
    expect(steps).toEqual(Array.from({ length: 15 }, (_, index) => index + 5));
    expect((await api.training.getJob({ name: failed.name })).job).toEqual(failed);
  });

  it('replaces steps to omit by either of their names', async () => {
    const { api, failed } = await openWithFailedJob();
    const prompt = { sample: { prompt: 'behave' } };
    const first = { ...prompt, skippedSteps: [{ first: 9, last: 9 }] };
    const { job } = await api.training.forkJob({ name: failed.name, spec: first });
    const forked = await ended(api, job!.name);
    const second = { ...prompt, stepCount: 40, omittedSteps: [{ first: 30, last: 31 }] };
    const again = await api.training.forkJob({ name: forked.name, spec: second });
    expect(again.job!.spec).toMatchObject({ omittedSteps: second.omittedSteps });
    expect(forked.spec).toMatchObject({ omittedSteps: first.skippedSteps });
  });

  it('that omits steps begins at the newest checkpoint before them, unless another is named', async () => {
    const { api, failed } = await openWithFailedJob();
    const prompt = { sample: { prompt: 'behave' } };
    const done = await ended(
      api,
      (await api.training.forkJob({ name: failed.name, spec: prompt })).job!.name,
    );
    const originWith = async (omittedSteps: { first: number; last: number }[], checkpointStep?: number) => {
      const spec = { ...prompt, stepCount: 40, omittedSteps };
      return (await api.training.forkJob({ name: done.name, spec, checkpointStep })).job!.origin?.step;
    };
    expect(await originWith([{ first: 25, last: 25 }])).toBe(20);
    expect(await originWith([{ first: 20, last: 25 }])).toBe(20);
    expect(await originWith([{ first: 19, last: 25 }])).toBe(15);
    expect(await originWith([{ first: 19, last: 19 }], 20)).toBe(20);
    const spec = { ...prompt, omittedSteps: [{ first: 2, last: 3 }] };
    const refusal = await refusalOf((options) => api.training.forkJob({ name: done.name, spec }, options));
    expect(refusal.message).toContain(
      'has no checkpoint of step 2 or before; it has those of the steps 20, 15, 5',
    );
  });

  it('does not look for a checkpoint before steps that the ended job omitted, too', () => {
    const job = {
      omittedSteps: [
        { first: 2, last: 4 },
        { first: 5, last: 6 },
      ],
    };
    const first = (...omittedSteps: { first: number; last: number }[]) =>
      firstOmittedAnew(job, { omittedSteps, skippedSteps: [] });
    expect(first({ first: 2, last: 6 })).toBeUndefined();
    expect(first({ first: 3, last: 7 })).toBe(7);
    expect(first({ first: 2, last: 3 }, { first: 9, last: 9 })).toBe(9);
    expect(first({ first: 1, last: 2 })).toBe(1);
  });

  it('from between two restarts counts those that the checkpoint has behind it', async () => {
    const { api, failed } = await openWithFailedJob(4);
    const { job } = await api.training.forkJob({
      name: failed.name,
      spec: { sample: { prompt: 'behave' } },
    });
    expect(job!.progress).toMatchObject({ step: 5, restartCount: 1 });
  });

  it('of a job that never came to a checkpoint of its own begins where that began', async () => {
    const { api, failed } = await openWithFailedJob();
    const crash = { name: failed.name, spec: { sample: { prompt: 'exitAtOnce' } } };
    const again = await ended(api, (await api.training.forkJob(crash)).job!.name);
    expect(again).toMatchObject({ state: JobState.FAILED, origin: { job: failed.name, step: 5 } });
    const last = { name: again.name, spec: { sample: { prompt: 'behave' } } };
    const done = await ended(api, (await api.training.forkJob(last)).job!.name);
    expect(done).toMatchObject({ state: JobState.SUCCEEDED, origin: { job: failed.name, step: 5 } });
  });

  it('of a job that began at a checkpoint which was removed since finds none', async () => {
    const { api, failed } = await openWithFailedJob();
    const crash = { name: failed.name, spec: { sample: { prompt: 'exitAtOnce' } } };
    const again = await ended(api, (await api.training.forkJob(crash)).job!.name);
    const { checkpoints, queue, store } = api.parts;
    const failedId = failed.name.slice('jobs/'.length);
    const { origin } = (await store.find(again.name.slice('jobs/'.length)))!;
    await checkpoints.remove(failedId, await checkpoints.list(failedId));
    const refusal = await refusalOf((options) => api.training.forkJob({ name: again.name }, options));
    expect(refusal.info.reason).toBe('CHECKPOINT_NOT_FOUND');
    // Also if it is removed between the look at it and the storing of the job.
    expect(await queue.submit(newJob({ origin }))).toEqual({ leftSteps: [] });
  });

  it('trains a job that succeeded for longer', async () => {
    const { api, failed } = await openWithFailedJob();
    const good = { name: failed.name, spec: { sample: { prompt: 'behave' } } };
    const done = await ended(api, (await api.training.forkJob(good)).job!.name);
    const longer = await api.training.forkJob({ name: done.name, spec: { stepCount: 30 } });
    expect(longer.job).toMatchObject({ origin: { job: done.name, step: 20 }, progress: { stepCount: 30 } });
    expect((await ended(api, longer.job!.name)).progress).toMatchObject({ step: 30 });
    const finished = await refusalOf((options) => api.training.forkJob({ name: done.name }, options));
    expect(finished.message).toContain('spec.step_count: expected at least 21, one more than the checkpoint');
  });

  it('refuses another value of every setting that its table says checkpoints keep, and of no other', () => {
    const before = { ...defaultRunSpec({ kind: 'relora' }), stepCount: 100 };
    const groups: [string, Settings][] = [
      ['', runSettings],
      ...Object.entries({
        model: modelSettings,
        batch: batchSettings,
        adapter: adapterSettings,
        warmStart: warmStartSettings,
        learningRate: learningRateSettings,
        optimizer: optimizerSettings,
        evaluation: evaluationSettings,
        checkpoint: checkpointSettings,
        stop: stopSettings,
        sample: sampleSettings,
        export: exportSettings,
        streams: streamSettings,
      }),
    ];
    for (const [group, table] of groups)
      for (const [key, setting] of Object.entries(table)) {
        const place = (spec: object) => (group === '' ? spec : (spec as Record<string, object>)[group]!);
        const after = structuredClone(before);
        const value = (place(after) as Record<string, unknown>)[key];
        Object.assign(place(after), {
          [key]: typeof value === 'number' ? value + 1 : `not ${String(value)}`,
        });
        const fields = problemsOfFork(before, after, 1).map(({ field }) => field);
        const field = ['spec', group, key].filter(Boolean).map(fieldName).join('.');
        expect(fields.includes(field), field).toBe(setting.isKept === true);
      }
  });

  it('refuses all that the checkpoint holds or counts by, at once', async () => {
    const { api, failed } = await openWithFailedJob();
    const spec = {
      seed: 1,
      streams: { dataCut: 1 },
      warmStart: { stepCount: 2 },
      adapter: { rank: 2 },
      optimizer: { beta1: 0.5 },
      batch: { sequenceCount: 4, sequenceLength: 4 },
    };
    const refusal = await refusalOf((options) => api.training.forkJob({ name: failed.name, spec }, options));
    expect(refusal).toMatchObject({ code: Status.INVALID_ARGUMENT, info: { reason: 'JOB_SPEC_INVALID' } });
    expect(refusal.fields).toEqual([
      'spec.seed',
      'spec.warm_start.step_count',
      'spec.streams.data_cut',
      'spec.adapter.rank',
      'spec.optimizer.beta1',
      'spec.batch.sequence_length',
      'spec.batch.sequence_count',
    ]);
    expect(refusal.message).toContain('expected what the checkpoint was trained with, 4, got 2');
  });

  it('repeated with its request id makes one job; with another wish it is refused', async () => {
    const { api, failed } = await openWithFailedJob();
    const request = { name: failed.name, requestId: uuid, spec: { sample: { prompt: 'wait' } } };
    const first = await api.training.forkJob(request);
    expect((await api.training.forkJob(request)).job!.name).toBe(first.job!.name);
    expect((await api.training.restartJob(request)).job!.name).toBe(first.job!.name); // its name in 0.1.0
    const other = await refusalOf((options) =>
      api.training.forkJob({ ...request, displayName: 'Other' }, options),
    );
    expect(other.info.reason).toBe('REQUEST_ID_REUSED');
  });

  it('is for jobs that have ended, and for checkpoints that are there', async () => {
    const { api, failed } = await openWithFailedJob();
    const { job } = await api.training.createJob({ spec: jobSpec('wait') });
    await jobWhen(api.parts, job!.name.slice('jobs/'.length), ({ state }) => state === 'running');
    const early = await refusalOf((options) => api.training.forkJob({ name: job!.name }, options));
    expect(early.message).toContain('RUNNING and cannot be forked');
    const missing = await refusalOf((options) =>
      api.training.forkJob({ name: failed.name, checkpointStep: 7 }, options),
    );
    expect(missing.message).toContain('no checkpoint of step 7; it has those of the steps 5');
  });
});
