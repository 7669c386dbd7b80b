import {
  EndOfData,
  HeadPrecision,
  ReductionType,
  type DeepPartial,
  type JobSpec,
  type UpdateJobRequest,
} from '@relora/sdk/contract';
import type { CallOptions } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { patienceMs } from '../patience.mjs';
import { jobSpec, openApi, refusalOf } from './apiServer.js';
import {
  allEvents,
  claim,
  execution,
  jobWhen,
  openParts,
  readyDataset,
  stepEvent,
  submit,
  type Parts,
} from './parts.js';
import { lossesOf, spec, trainingParts } from './trainingParts.js';

const wish = { change: null, priority: null, labels: {}, removedLabels: [], digest: '' };

async function filesOf(parts: Parts, jobId: string): Promise<string[]> {
  const { artifacts } = await parts.artifacts.list(jobId, { after: null, artifactsMax: 10 });
  return artifacts.flatMap(({ files }) =>
    files
      .filter(({ fileName }) => fileName !== 'relora_manifest.json')
      .map(({ fileName, sha256 }) => `${fileName} ${sha256}`),
  );
}

describe('a running job', () => {
  it('is changed twice, killed between, and repeated by its updates to the same bits', async () => {
    const parts = await trainingParts();
    const changes = { stepCount: 400, checkpoint: { everyStepCount: 20, keepCount: 2, everySeconds: 0 } };
    const { id } = await submit(parts, { spec: spec(changes) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 15);
    await parts.control.update(id, { ...wish, change: { learningRateFactor: 0.5 } });
    await jobWhen(parts, id, ({ progress }) => (progress.checkpointStep ?? 0) >= 60);
    process.kill(parts.supervisor.trainerPid(id)!, 'SIGKILL');
    await jobWhen(parts, id, ({ attempt, state }) => attempt === 2 && state === 'running');
    const step = (await parts.store.find(id))!.progress.step;
    await parts.control.update(id, {
      ...wish,
      change: { stepCount: 160, evaluation: { everyStepCount: 50 } },
    });
    const ended = await jobWhen(parts, id, ({ state }) => isTerminal(state));
    expect(ended).toMatchObject({ state: 'succeeded', updateNumber: 2 });

    const updates = await parts.store.updatesOf(id);
    expect(updates.map(({ number, change }) => [number, change])).toEqual([
      [1, { learningRateFactor: 0.5 }],
      [2, { stepCount: 160, evaluation: { everyStepCount: 50 } }],
    ]);
    expect(updates[0]!.step).toBeGreaterThanOrEqual(15);
    expect(updates[1]!.step).toBeGreaterThanOrEqual(step);
    const total = Math.max(164, updates[1]!.step!);
    expect(ended.progress).toMatchObject({ step: total, stepCount: total });
    // Each update is in the journal with its step; an update repeated after the kill has the same step.
    for (const { body } of await allEvents(parts, id))
      if (body.kind === 'update') expect(body.step).toBe(updates[body.number - 1]!.step);

    const again = await submit(parts, { spec: spec(changes), updates });
    expect(await jobWhen(parts, again.id, ({ state }) => isTerminal(state))).toMatchObject({
      state: 'succeeded',
    });
    expect(await lossesOf(parts, again.id)).toEqual(await lossesOf(parts, id));
    expect(await filesOf(parts, again.id)).toEqual(await filesOf(parts, id));
    expect((await filesOf(parts, id)).length).toBeGreaterThan(1);
    // Without the updates the result differs.
    const plain = await submit(parts, { spec: spec({ ...changes, stepCount: 160 }) });
    await jobWhen(parts, plain.id, ({ state }) => isTerminal(state));
    expect(await filesOf(parts, plain.id)).not.toEqual(await filesOf(parts, id));
  });

  it('keeps as many checkpoints as it was changed to, also after a kill', async () => {
    const parts = await trainingParts();
    const checkpoint = { everyStepCount: 10, keepCount: 2, everySeconds: 0 };
    const { id } = await submit(parts, { spec: spec({ stepCount: 304, checkpoint }) });
    await jobWhen(parts, id, ({ progress }) => (progress.checkpointStep ?? 0) >= 30);
    await parts.control.update(id, { ...wish, change: { checkpoint: { keepCount: 5 } } });
    await jobWhen(parts, id, ({ progress }) => (progress.checkpointStep ?? 0) >= 60);
    process.kill(parts.supervisor.trainerPid(id)!, 'SIGKILL');
    await jobWhen(parts, id, ({ state }) => isTerminal(state));
    // Old ones are removed concurrently with messages.
    const kept = async () => (await parts.checkpoints.list(id)).map(({ step }) => step);
    await expect.poll(kept, { timeout: patienceMs }).toEqual([308, 300, 290, 280, 270]);
  });

  it('that is changed while it waits or is paused has it from its next step on', async () => {
    const parts = await trainingParts();
    const { id } = await submit(parts, { spec: spec({ stepCount: 200 }) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 10);
    await parts.control.pause(id);
    const paused = (await parts.control.whenSettled(id, AbortSignal.timeout(60_000)))!;
    await parts.control.update(id, { ...wish, change: { stepCount: 60 } });
    await parts.control.resume(id);
    const ended = await jobWhen(parts, id, ({ state }) => isTerminal(state));
    expect(ended).toMatchObject({
      state: 'succeeded',
      progress: { step: Math.max(64, paused.progress.step) },
    });
    const [update] = await parts.store.updatesOf(id);
    expect(update!.step).toBe(paused.progress.step);
  });
});

it('a fork may begin with as many updates as a run can get', async () => {
  const parts = await openParts();
  const updates = Array.from({ length: 10_000 }, (_, index) => ({
    number: index + 1,
    step: index,
    change: { learningRateFactor: 0.5 },
  }));
  const { id } = await submit(parts, { updates });
  expect(await parts.store.updatesOf(id)).toEqual(updates);
});

describe('UpdateJob', () => {
  async function running() {
    const api = await openApi();
    const { id } = await submit(api.parts, {
      spec: spec({ stepCount: 100 }),
      labels: { team: 'one', old: 'x' },
    });
    const key = { jobId: id, attempt: (await claim(api.parts)).attempt };
    await api.parts.attempts.started(key, execution, 0);
    await api.parts.attempts.append(key, [stepEvent(0), stepEvent(1)]);
    const update = async (request: DeepPartial<UpdateJobRequest>, options?: CallOptions) =>
      await api.training.updateJob({ name: `jobs/${id}`, ...request }, options);
    return { ...api, id, key, update };
  }

  it('answers with the job, its updates and the jump of the rate', async () => {
    const { update, training, id, parts, key } = await running();
    const answer = await update({ learningRateFactor: 0.25 });
    expect(answer.job!.updates).toMatchObject([{ number: 1, learningRateFactor: 0.25 }]);
    expect(answer.job!.updates[0]!.step).toBeUndefined();
    expect(answer.learningRateBefore).toBeGreaterThan(0);
    expect(answer.learningRateAfter).toBe(0.25 * answer.learningRateBefore!);
    await parts.attempts.append(key, [
      {
        timeMs: 1,
        body: {
          kind: 'update',
          step: 2,
          number: 1,
          learningRateFactor: 0.25,
          stepCount: 104,
          learningRateBefore: 1,
          learningRateAfter: 0.25,
        },
      },
    ]);
    expect((await training.getJob({ name: `jobs/${id}` })).job!.updates).toMatchObject([
      { number: 1, step: 2 },
    ]);
  });

  it('changes priority and labels at once, and nothing else of the job', async () => {
    const { update, training } = await running();
    const { job } = await update({
      spec: { priority: 7 },
      labels: { team: 'two', new: 'y' },
      removedLabels: ['old'],
    });
    expect(job).toMatchObject({ labels: { team: 'two', new: 'y' }, spec: { priority: 7 }, updates: [] });
    const found = async (labels: Record<string, string>) => (await training.listJobs({ labels })).jobs.length;
    expect([await found({ team: 'two' }), await found({ team: 'one' }), await found({ old: 'x' })]).toEqual([
      1, 0, 0,
    ]);
  });

  it('counts the labels that the job has afterwards: what it does not have makes no room', async () => {
    const { update } = await running();
    const more = Object.fromEntries(Array.from({ length: 30 }, (_, index) => [`key-${index}`, 'x']));
    await update({ labels: more });
    const request = { labels: { another: 'y' }, removedLabels: ['none', 'none'] };
    expect(await refusalOf((options) => update(request, options))).toMatchObject({ fields: ['labels'] });
    const { job } = await update({ ...request, removedLabels: ['old', 'old'] });
    expect(Object.keys(job!.labels)).toHaveLength(32);
  });

  it('of a new job may be due before one that was asked for earlier, as where that still waited', async () => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    const updates = [
      { step: 9, learningRateFactor: 0.5 },
      { step: 4, stop: true },
    ];
    const { job } = await training.createJob({ spec: jobSpec(), updates });
    expect((await training.getJob({ name: job!.name })).job!.updates).toMatchObject([
      { number: 1, ...updates[0] },
      { number: 2, ...updates[1] },
    ]);
  });

  it('refuses the steps of an update of a new job that UpdateJob would refuse', async () => {
    const { training, parts } = await openApi({ RELORA_STEPS_MAX: '100' });
    await readyDataset(parts);
    const refused = async (changes: DeepPartial<JobSpec>, stepCounts: number[]) => {
      const updates = stepCounts.map((stepCount) => ({ step: 2, stepCount }));
      const request = { spec: jobSpec('', changes), updates };
      return (await refusalOf((options) => training.createJob(request, options))).fields;
    };
    // A single pass over the data stays one, and is as long as an earlier update left it.
    const once = { stepCount: 5, endOfData: EndOfData.STOP, learningRate: { warmupStepCount: 1 } };
    expect(await refused(once, [3, 4])).toEqual(['updates[1].step_count']);
    // The limit on steps holds for both phases together, and the main one is longer than its warm-up.
    expect(await refused({ warmStart: { stepCount: 10 } }, [90, 91])).toEqual(['updates[1].step_count']);
    expect(await refused({ learningRate: { warmupStepCount: 4 } }, [5, 4])).toEqual([
      'updates[1].step_count',
    ]);
    // With problems of the specification in one answer.
    expect((await refused({ checkpoint: { everyStepCount: 0 } }, [0])).sort()).toEqual([
      'spec.checkpoint.every_step_count',
      'updates[0].step_count',
    ]);
  });

  it('acts once for a request that is repeated, and not on a job that has changed', async () => {
    const { update, id, training } = await running();
    const { etag } = (await training.getJob({ name: `jobs/${id}` })).job!;
    const requestId = '0b8f1c3e-43f0-4f0e-9a52-7a2a2f7c2a11';
    await update({ learningRateFactor: 0.5, requestId, etag });
    expect((await update({ learningRateFactor: 0.5, requestId, etag })).job!.updates).toHaveLength(1);
    expect(
      await refusalOf((options) => update({ learningRateFactor: 0.7, requestId }, options)),
    ).toMatchObject({ info: { reason: 'REQUEST_ID_REUSED' } });
    expect(await refusalOf((options) => update({ learningRateFactor: 0.7, etag }, options))).toMatchObject({
      info: { reason: 'JOB_CHANGED' },
    });
  });

  it.each<[string, DeepPartial<UpdateJobRequest>, RegExp]>([
    ['a seed', { spec: { seed: 3 } }, /spec\.seed: expected unset, since a run keeps it to its end; ForkJob/],
    [
      'what gradients travel as',
      { spec: { reductionType: ReductionType.BFLOAT16 } },
      /spec\.reduction_type: expected unset, since a run keeps it/,
    ],
    [
      'the arithmetic of the head',
      { spec: { headPrecision: HeadPrecision.INT8 } },
      /spec\.head_precision: expected unset, since a run keeps it/,
    ],
    ['a rank', { spec: { adapter: { rank: 3 } } }, /spec\.adapter: expected unset/],
    [
      'how much is evaluated',
      { spec: { evaluation: { tokenCount: 3 } } },
      /spec\.evaluation\.token_count: expected unset/,
    ],
    [
      'a factor of zero',
      { learningRateFactor: 0 },
      /learning_rate_factor: expected a number above 0 to 100, got 0/,
    ],
    ['a factor that is no number', { learningRateFactor: NaN }, /learning_rate_factor/],
    ['no steps', { spec: { stepCount: 0 } }, /spec\.step_count: expected a whole number from/],
    [
      'a checkpoint at no step',
      { spec: { checkpoint: { everyStepCount: 0 } } },
      /checkpoint\.every_step_count/,
    ],
    [
      'one checkpoint',
      { spec: { checkpoint: { keepCount: 1 } } },
      /spec\.checkpoint\.keep_count: expected a whole number from 2 to 1000, got 1/,
    ],
    ['a time below zero', { spec: { sample: { everySeconds: -1 } } }, /sample\.every_seconds/],
    ['nothing', {}, /something that changes/],
  ])('refuses %s, with the reason', async (_, request, message) => {
    const { update } = await running();
    await expect(update(request)).rejects.toThrow(message);
  });

  it('refuses a job that has ended', async () => {
    const { update, parts, key } = await running();
    await parts.attempts.succeeded(key);
    expect(await refusalOf((options) => update({ learningRateFactor: 0.5 }, options))).toMatchObject({
      info: { reason: 'JOB_STATE_WRONG' },
    });
  });
});
