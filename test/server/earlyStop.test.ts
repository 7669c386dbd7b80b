import { ExportedWeights, StopReason, type DeepPartial, type JobSpec } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { patienceMs } from '../patience.mjs';
import { jobSpec, openApi, refusalOf } from './apiServer.js';
import {
  allEvents,
  claim,
  execution,
  jobWhen,
  readyDataset,
  stepEvent,
  submit,
  type Parts,
} from './parts.js';
import { lossesOf, run, spec, trainingParts } from './trainingParts.js';

const often = { everyStepCount: 2, everySeconds: 0, tokenCount: 256, finalTokenCount: 512 };
async function bodiesOf<K extends string>(parts: Parts, id: string, kind: K) {
  return (await allEvents(parts, id)).flatMap(({ body }) => (body.kind === kind ? [body] : []));
}

/** Files of a job's export, without the manifest, which contains the job's name. */
async function filesOf(parts: Parts, jobId: string): Promise<string[]> {
  const { artifacts } = await parts.artifacts.list(jobId, { after: null, artifactsMax: 10 });
  return artifacts.flatMap(({ files }) =>
    files
      .filter(({ fileName }) => fileName !== 'relora_manifest.json')
      .map(({ fileName, sha256 }) => `${fileName} ${sha256}`),
  );
}

describe('a job that ends early', () => {
  it('succeeds with its reason in the last event, in the job and in what explains it', async () => {
    const parts = await trainingParts();
    const tokens = 90; // a little less than six steps
    const ended = await run(parts, { stop: { ...spec().stop, tokenCount: tokens } });
    const perStep = ended.spec.batch.sequenceCount * ended.spec.batch.sequenceLength;
    const step = Math.ceil(tokens / perStep);
    expect(ended).toMatchObject({
      state: 'succeeded',
      progress: { step, stepCount: step, stop: { step, reason: 'tokenCount', limit: tokens } },
    });
    expect(ended.stateReason).toMatch(
      new RegExp(
        `^Ended early after step ${step}: \\d+ tokens were trained on, .* and the weights exported$`,
      ),
    );
    expect((await allEvents(parts, ended.id)).at(-1)).toMatchObject({
      final: true,
      body: { kind: 'state', to: 'succeeded', stopReason: 'tokenCount', reason: ended.stateReason },
    });
    expect(await bodiesOf(parts, ended.id, 'stop')).toMatchObject([{ step, reason: 'tokenCount' }]);
    expect(await filesOf(parts, ended.id)).not.toEqual([]);
  });

  it('by a clock ends at the same step when it is killed after that, and in a replay', async () => {
    const parts = await trainingParts();
    const slow = { stepCount: 100_000, checkpoint: { everyStepCount: 5, keepCount: 2, everySeconds: 0 } };
    const changes = { ...slow, stop: { ...spec().stop, seconds: 2 } };
    const { id } = await submit(parts, { spec: spec(changes) });
    await jobWhen(parts, id, ({ progress }) => progress.stop !== undefined);
    const pid = parts.supervisor.trainerPid(id);
    if (pid !== undefined) process.kill(pid, 'SIGKILL');
    const ended = await jobWhen(parts, id, ({ state }) => isTerminal(state));
    const { stop } = ended.progress;
    expect(ended).toMatchObject({
      state: 'succeeded',
      progress: { step: stop!.step, stepCount: stop!.step },
    });
    expect(stop).toMatchObject({ reason: 'seconds', limit: 2 });
    expect(await bodiesOf(parts, id, 'stop')).toHaveLength(1);

    const updates = [{ number: 1, step: stop!.step, change: { stop: true } }];
    const again = await submit(parts, { spec: spec(slow), updates });
    const replayed = await jobWhen(parts, again.id, ({ state }) => isTerminal(state));
    expect(replayed.progress.stop).toMatchObject({ reason: 'requested', step: stop!.step });
    expect(await lossesOf(parts, again.id)).toEqual(await lossesOf(parts, id));
    expect(await filesOf(parts, again.id)).toEqual(await filesOf(parts, id));
  });

  it('counts device hours over its attempts, but no pause', async () => {
    const parts = await trainingParts();
    const changes = { stepCount: 100_000, stop: { ...spec().stop, deviceHours: 1000 } };
    const { id } = await submit(parts, { spec: spec(changes) });
    await jobWhen(parts, id, ({ progress }) => progress.step >= 5);
    const secondsOf = async () => await parts.store.deviceSeconds((await parts.store.find(id))!);
    expect(await secondsOf()).toBe(0);
    const stopped = [];
    for (const _ of [1, 2]) {
      await parts.control.pause(id);
      await parts.control.whenSettled(id, AbortSignal.timeout(patienceMs));
      stopped.push(await secondsOf());
      await parts.control.resume(id);
      await jobWhen(parts, id, ({ state }) => state === 'running');
    }
    const states = (await allEvents(parts, id)).flatMap(({ body, timeMs }) =>
      body.kind === 'state' ? [{ to: body.to, timeMs }] : [],
    );
    const timesOf = (state: string) => states.filter(({ to }) => to === state).map(({ timeMs }) => timeMs);
    const [starts, pauses] = [timesOf('starting'), timesOf('paused')];
    const held = pauses.map((timeMs, index) => (timeMs - starts[index]!) / 1000);
    expect(stopped[0]).toBeCloseTo(held[0]!, 1);
    expect(stopped[1]).toBeCloseTo(held[0]! + held[1]!, 1);
    await parts.control.cancel(id);
  });
});

it('the best checkpoint stays beside the newest, over a kill, and its weights are exported and written from', async () => {
  const parts = await trainingParts();
  // The rate grows to the end: the loss soon rises, and stays high.
  const rate = { ...spec().learningRate, peak: 2, schedule: 'constant' as const, warmupStepCount: 264 };
  const changes = {
    kind: 'fullRank' as const,
    adapter: null,
    // A trainer is at most 64 messages ahead of the server: it cannot finish before it is killed.
    stepCount: 264,
    learningRate: rate,
    evaluation: often,
    checkpoint: { everyStepCount: 5, keepCount: 2, everySeconds: 0, keepBest: true },
    export: { ...spec().export, weights: 'best' as const },
  };
  const { id } = await submit(parts, { spec: spec(changes) });
  await jobWhen(parts, id, ({ progress }) => (progress.checkpointStep ?? 0) >= 30);
  process.kill(parts.supervisor.trainerPid(id)!, 'SIGKILL');
  const ended = await jobWhen(parts, id, ({ state }) => isTerminal(state));
  expect(ended.state).toBe('succeeded');
  const compared = (await allEvents(parts, id)).flatMap(({ body }) =>
    body.kind === 'evaluation' && body.tokenCount === 256 ? [body] : [],
  );
  const lowest = Math.min(...compared.map(({ loss }) => loss));
  const { best } = ended.progress;
  expect(best).toEqual({ step: compared.find(({ loss }) => loss === lowest)!.step, loss: lowest });
  expect(best!.step).toBeLessThan(200);
  const steps = async () => (await parts.checkpoints.list(id)).map(({ step }) => step);
  await expect.poll(steps, { timeout: patienceMs }).toEqual([264, 260, best!.step]);
  // No other deletion of checkpoints removes it either.
  await parts.checkpoints.remove(id, (await parts.checkpoints.list(id)).slice(1));
  expect(await steps()).toEqual([264, best!.step]);

  const { artifacts } = await parts.artifacts.list(id, { after: null, artifactsMax: 10 });
  expect(artifacts).toMatchObject([{ state: 'ready', step: best!.step, format: 'huggingFace' }]);
  // A run that ends there has exactly these weights.
  const until = await submit(parts, {
    spec: spec({ ...changes, export: spec().export }),
    updates: [{ number: 1, step: best!.step, change: { stop: true } }],
  });
  await jobWhen(parts, until.id, ({ state }) => isTerminal(state));
  expect(await filesOf(parts, until.id)).toEqual(await filesOf(parts, id));
});

describe('weights: BEST', () => {
  async function ended(best: boolean) {
    const api = await openApi();
    const { id } = await submit(api.parts, {
      spec: spec({ checkpoint: { ...spec().checkpoint, keepBest: best }, evaluation: often }),
    });
    const key = { jobId: id, attempt: (await claim(api.parts)).attempt };
    await api.parts.attempts.started(key, execution, 0);
    await api.parts.attempts.append(key, [stepEvent(0), stepEvent(1)]);
    return { ...api, id, key };
  }

  it('is refused beside a step, for an artifact, and where nothing is the best', async () => {
    const { artifacts, model, id } = await ended(false);
    const job = `jobs/${id}`;
    const weights = ExportedWeights.BEST;
    await expect(artifacts.exportWeights({ job, weights, checkpointStep: 3 })).rejects.toThrow(
      /checkpoint_step: expected unset if weights is BEST/,
    );
    expect(await refusalOf((options) => artifacts.exportWeights({ job, weights }, options))).toMatchObject({
      info: { reason: 'CHECKPOINT_NOT_FOUND' },
    });
    const generate = async (name: string) => {
      for await (const _ of model.generateText({ model: name, weights })) return;
    };
    await expect(generate(`${job}/artifacts/merged-model-1`)).rejects.toThrow(
      /weights: expected unset for an artifact/,
    );
    await expect(generate(job)).rejects.toThrow(/has neither an artifact nor a checkpoint yet/);
  });
});

it('the job shows what is the best and why it ended, over the wire', async () => {
  const { parts, training } = await openApi();
  const { id } = await submit(parts, { spec: spec() });
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  const name = `jobs/${id}`;
  expect((await training.explainJob({ name })).message).toBe('The job is running');
  await parts.attempts.append(key, [
    stepEvent(0),
    { timeMs: 1, body: { kind: 'stop', step: 1, reason: 'patience', value: 3, limit: 3 } },
  ]);
  await parts.attempts.succeeded(key);
  const { job } = await training.getJob({ name });
  expect(job!.progress).toMatchObject({ stopReason: StopReason.PATIENCE, stepCount: 1, remainingSeconds: 0 });
  const text = 'Ended early after step 1: the held-out loss did not fall in 3 evaluations in a row';
  expect(job!.stateReason).toBe(`${text} and the weights exported`);
  expect((await training.explainJob({ name })).message).toBe(`The job has succeeded. ${job!.stateReason}`);
  const events = [];
  for await (const { event } of training.watchJob({ name })) events.push(event!);
  expect(events.at(-1)).toMatchObject({ final: true, state: { stopReason: StopReason.PATIENCE } });
  expect(events.find(({ stop }) => stop)!.stop).toMatchObject({
    step: 1,
    reason: StopReason.PATIENCE,
    value: 3,
  });
});

describe('settings that end a run early', () => {
  it.each<[string, DeepPartial<JobSpec>, RegExp]>([
    [
      'a negative patience',
      { stop: { patienceEvaluationCount: -1 } },
      /spec\.stop\.patience_evaluation_count: expected a whole number from 0/,
    ],
    [
      'an improvement without patience',
      { stop: { minImprovement: 0.1 } },
      /spec\.stop\.min_improvement: expected 0, or a patience_evaluation_count that it is for, got 0\.1/,
    ],
    [
      'patience without evaluations',
      { stop: { patienceEvaluationCount: 3 }, evaluation: { everyStepCount: 0 } },
      /spec\.stop\.patience_evaluation_count: expected 0 where evaluation\.every_step_count and every_seconds are 0, got 3/,
    ],
    [
      'a loss that is no number',
      { stop: { evaluationLoss: NaN } },
      /spec\.stop\.evaluation_loss: expected a number/,
    ],
    ['a time beyond ten years', { stop: { seconds: 2_000_000_000 } }, /spec\.stop\.seconds/],
    [
      'the best weights of a job that does not keep them',
      { export: { weights: ExportedWeights.BEST } },
      /spec\.export\.weights: expected LAST, or BEST together with checkpoint\.keep_best, got BEST/,
    ],
  ])('refuses %s', async (_, changes, message) => {
    const { training, parts } = await openApi();
    await readyDataset(parts);
    await expect(training.createJob({ spec: jobSpec('', changes), validateOnly: true })).rejects.toThrow(
      message,
    );
  });
});
