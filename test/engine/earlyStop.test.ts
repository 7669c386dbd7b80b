import {
  beginRun,
  disposeRun,
  openDevice,
  reasonToStop,
  recordAfter,
  saveCheckpoint,
  type BeginRunOptions,
} from '@relora/engine';
import type { GivenSpec } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { licenseDataset, ofKind, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

async function begin(changes: GivenSpec = {}, options: Partial<BeginRunOptions> = {}) {
  const spec = tinySpec(changes);
  const device = await openDevice({ device: spec.device, precision: 'float32', threads: 2 });
  return await beginRun({
    spec,
    device,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

const often = { evaluation: { everyStepCount: 2, everySeconds: 0, tokenCount: 128, finalTokenCount: 512 } };

/** Runs to the end, and returns the events about its end. */
async function ended(changes: GivenSpec, options: Partial<BeginRunOptions> = {}) {
  const run = await begin(changes, options);
  const events = await runLoop(run);
  const facts = {
    events,
    stop: ofKind(events, 'stop'),
    evaluations: ofKind(events, 'evaluation'),
    steps: ofKind(events, 'step').map(({ step, loss }) => [step, loss]),
    checkpoints: ofKind(events, 'checkpoint'),
    weights: await weightsOf(run),
  };
  disposeRun(run);
  return facts;
}

describe('the record of held-out losses', () => {
  const record = (losses: number[], minImprovement = 0) => {
    const { stop } = tinySpec({ stop: { minImprovement } });
    let present = recordAfter(
      { loss: null, best: null, reference: null, worseCount: 0 },
      { step: 1, loss: losses[0]! },
      stop,
    );
    for (const [index, loss] of losses.slice(1).entries())
      present = recordAfter(present, { step: index + 2, loss }, stop);
    return present;
  };

  it('counts evaluations without a lower loss, and knows the lowest', () => {
    expect(record([3, 2, 2, 2.5])).toEqual({
      loss: 2.5,
      best: { step: 2, loss: 2 },
      reference: 2,
      worseCount: 2,
    });
    expect(record([3, 2, 2.5, 1.9]).worseCount).toBe(0);
  });

  it('takes a loss for lower only by the improvement that is asked for, also over several small ones', () => {
    // The best is the lowest loss; patience refers to the last loss that counted as better.
    expect(record([3, 2.95, 2.92], 0.1)).toEqual({
      loss: 2.92,
      best: { step: 3, loss: 2.92 },
      reference: 3,
      worseCount: 2,
    });
    expect(record([3, 2.95, 2.85], 0.1).worseCount).toBe(0);
  });

  it('takes a loss that is not finite for worse than any', () => {
    expect(record([3, NaN, Infinity])).toEqual({
      loss: null,
      best: { step: 1, loss: 3 },
      reference: 3,
      worseCount: 2,
    });
    expect(record([NaN, 3]).best).toEqual({ step: 2, loss: 3 });
  });
});

it('every limit ends a run when it is reached, and none before', () => {
  const facts = {
    heldOut: { loss: 2, best: { step: 4, loss: 1.5 }, reference: 1.5, worseCount: 3 },
    trainedTokens: 1000,
    seconds: 59.9,
    deviceSeconds: 7200,
    isRequested: false,
  };
  const reason = (stop: GivenSpec['stop'], changes = {}) =>
    reasonToStop(tinySpec({ stop: { ...stop } }), { ...facts, ...changes });
  expect(reason({})).toBeNull();
  expect(reason({}, { isRequested: true })).toEqual({ reason: 'requested', value: 0, limit: 0 });
  expect(reason({ patienceEvaluationCount: 4 })).toBeNull();
  expect(reason({ patienceEvaluationCount: 3 })).toEqual({ reason: 'patience', value: 3, limit: 3 });
  expect(reason({ evaluationLoss: 1.9 })).toBeNull();
  expect(reason({ evaluationLoss: 2 })).toEqual({ reason: 'evaluationLoss', value: 2, limit: 2 });
  expect(reason({ tokenCount: 1001 })).toBeNull();
  expect(reason({ tokenCount: 1000 })).toEqual({ reason: 'tokenCount', value: 1000, limit: 1000 });
  expect(reason({ seconds: 60 })).toBeNull();
  expect(reason({ seconds: 59 })).toEqual({ reason: 'seconds', value: 59.9, limit: 59 });
  expect(reason({ deviceHours: 2.1 })).toBeNull();
  expect(reason({ deviceHours: 2 })).toEqual({ reason: 'deviceHours', value: 2, limit: 2 });
});

describe('a run that ends early', () => {
  it('has the bits of the run without the limit up to there, and is evaluated and saved as at its end', async () => {
    const plain = await ended(often);
    const tokens = await ended({ ...often, stop: { tokenCount: 9 * 128 } });
    expect(tokens.stop).toEqual([
      { kind: 'stop', step: 9, reason: 'tokenCount', value: 9 * 128, limit: 9 * 128 },
    ]);
    expect(tokens.steps).toEqual(plain.steps.slice(0, 9));
    expect(tokens.evaluations.at(-1)).toMatchObject({ step: 9, tokenCount: 512 });
    expect(tokens.checkpoints.at(-1)!.step).toBe(9);
    // By kind: a run ends with its last evaluation and checkpoint, whatever ended it.
    expect(plain.events.at(-1)!.kind).toBe('checkpoint');
    expect(tokens.events.at(-1)!.kind).toBe('checkpoint');
  });

  it('ends at the first evaluation that reaches its loss', async () => {
    const plain = await ended(often);
    const compared = plain.evaluations.filter(({ tokenCount }) => tokenCount === 128);
    const target = compared[3]!.loss;
    const first = compared.find(({ loss }) => loss <= target)!;
    const reached = await ended({ ...often, stop: { evaluationLoss: target } });
    expect(reached.stop).toEqual([
      { kind: 'stop', step: first.step, reason: 'evaluationLoss', value: first.loss, limit: target },
    ]);
  });

  it('ends where its patience does, and a stop before, at and behind the best resumes with the same state', async () => {
    // At this rate the loss soon rises.
    const changes: GivenSpec = {
      ...often,
      learningRate: { peak: 0.08, schedule: 'constant', warmupStepCount: 1 },
      stepCount: 60,
      stop: { patienceEvaluationCount: 3 },
      checkpoint: { everyStepCount: 1000, everySeconds: 0, keepBest: true },
    };
    const whole = await ended(changes);
    const [stop] = whole.stop;
    expect(stop).toMatchObject({ reason: 'patience', value: 3, limit: 3 });
    const compared = whole.evaluations.filter(({ tokenCount }) => tokenCount === 128);
    expect(compared.at(-1)!.step).toBe(stop!.step);
    const best = Math.min(...compared.map(({ loss }) => loss));
    const bestStep = compared.find(({ loss }) => loss === best)!.step;
    expect(compared.slice(-3).every(({ loss }) => loss >= best)).toBe(true);
    expect(bestStep).toBe(stop!.step - 6);
    // Every evaluation that was the best so far has a checkpoint, and the last checkpoint names the best.
    expect(whole.checkpoints.map(({ step }) => step)).toContain(bestStep);
    expect(whole.checkpoints.at(-1)!.best).toEqual({ step: bestStep, loss: best });

    for (const at of [2, bestStep, bestStep + 3]) {
      const first = await begin(changes);
      await runLoop(first, ({ kind, ...event }) => kind === 'step' && 'step' in event && event.step === at);
      const { path } = await saveCheckpoint(first);
      disposeRun(first);
      const resumed = await ended(changes, { checkpointPath: path, runFolder: first.folder, attempt: 2 });
      expect(resumed.stop).toEqual(whole.stop);
      expect(resumed.weights).toEqual(whole.weights);
      expect(resumed.checkpoints.at(-1)!.best).toEqual({ step: bestStep, loss: best });
    }
  });

  it('by time or device hours ends there again when it is repeated, whatever the clock says then', async () => {
    let nowMs = 1e12;
    const clock = () => (nowMs += 1000);
    const timed = { stop: { seconds: 40 } };
    const whole = await ended(timed, { steering: { now: clock, startMs: 1e12 - 20_000 } });
    const [stop] = whole.stop;
    expect(stop).toMatchObject({ reason: 'seconds', limit: 40 });
    expect(stop!.step).toBeGreaterThan(2);
    expect(stop!.step).toBeLessThan(20);
    const slow = { now: () => 2e12, startMs: 0, stopStep: stop!.step };
    const again = await ended(timed, { steering: slow });
    // It was reported before.
    expect(again.stop).toEqual([]);
    expect(again.steps).toEqual(whole.steps);
    expect(again.weights).toEqual(whole.weights);

    const before = { deviceSeconds: 3590, now: (() => ((nowMs = 1e12), clock))() };
    const hours = await ended({ stop: { deviceHours: 1 } }, { steering: before });
    expect(hours.stop[0]).toMatchObject({ reason: 'deviceHours', limit: 1 });
    expect(hours.stop[0]!.step).toBeLessThan(stop!.step);
  });

  it('on request ends before its next step, and a replay ends at the same', async () => {
    const run = await begin(often);
    const events = await runLoop(run, (event) => {
      if (event.kind === 'step' && event.step === 6)
        run.steering.add({ number: 1, step: null, change: { stop: true } });
      return false;
    });
    expect(ofKind(events, 'stop')).toEqual([
      { kind: 'stop', step: 7, reason: 'requested', value: 0, limit: 0 },
    ]);
    expect(ofKind(events, 'update')).toMatchObject([{ number: 1, step: 7 }]);
    const replayed = await ended(often, {
      steering: { updates: [{ number: 1, step: 7, change: { stop: true } }] },
    });
    expect(replayed.weights).toEqual(await weightsOf(run));
    disposeRun(run);
  });

  it('begins a job that is forked from it with patience of its own', async () => {
    const changes: GivenSpec = { ...often, stop: { patienceEvaluationCount: 1, minImprovement: 50 } };
    const first = await begin(changes);
    const events = await runLoop(first);
    const stoppedAt = ofKind(events, 'stop')[0]!.step;
    const { path } = await saveCheckpoint(first);
    disposeRun(first);
    const fork = await ended(changes, { checkpointPath: path, checkpointSpec: tinySpec(changes) });
    expect(fork.stop[0]!.step).toBeGreaterThan(stoppedAt);
  });
});

it('a job that keeps its best compares its last evaluation too, by the same tokens', async () => {
  const whole = await ended({ ...often, checkpoint: { everyStepCount: 1000, keepBest: true } });
  const last = whole.evaluations.filter(({ step }) => step === 24);
  expect(last.map(({ tokenCount }) => tokenCount)).toEqual([128, 512]);
  const compared = whole.evaluations.filter(({ tokenCount }) => tokenCount === 128);
  const best = compared.reduce((one, other) => (other.loss < one.loss ? other : one));
  expect(whole.checkpoints.at(-1)!.best).toEqual({ step: best.step, loss: best.loss });
  expect(whole.checkpoints.map(({ step }) => step)).toContain(best.step);
  // If both sizes are equal, one evaluation serves for both.
  const same = { ...often.evaluation, finalTokenCount: 100 };
  const once = await ended({ evaluation: same, checkpoint: { everyStepCount: 1000, keepBest: true } });
  expect(once.evaluations.filter(({ step }) => step === 24)).toHaveLength(1);
});

it('a job that keeps its best compares its last weights where a limit ends it, and again after a crash', async () => {
  const changes: GivenSpec = {
    ...often,
    checkpoint: { everyStepCount: 1000, keepBest: true },
    stop: { tokenCount: 9 * 128 },
  };
  const whole = await ended(changes);
  expect(whole.stop).toMatchObject([{ step: 9, reason: 'tokenCount' }]);
  const lastOf = ({ evaluations }: typeof whole) =>
    evaluations.filter(({ step }) => step === 9).map(({ tokenCount, loss }) => [tokenCount, loss]);
  expect(lastOf(whole).map(([tokenCount]) => tokenCount)).toEqual([128, 512]);
  const compared = whole.evaluations.filter(({ tokenCount }) => tokenCount === 128);
  const best = compared.reduce((one, other) => (other.loss < one.loss ? other : one));
  expect(whole.checkpoints.at(-1)!.best).toEqual({ step: best.step, loss: best.loss });
  // The event `stop` was stored, and nothing after it.
  const again = await ended(changes, { steering: { stopStep: 9 } });
  expect(lastOf(again)).toEqual(lastOf(whole));
  expect(again.checkpoints.at(-1)!.best).toEqual(whole.checkpoints.at(-1)!.best);
});
