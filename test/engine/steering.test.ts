import { beginRun, disposeRun, openDevice, saveCheckpoint, type BeginRunOptions } from '@relora/engine';
import { Schedule, SteeredSchedule, type GivenSpec, type RunUpdate } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { Steering } from '../../engine/dist/training/steering.js';
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

const lossesIn = (events: Awaited<ReturnType<typeof runLoop>>) => {
  const losses: number[] = [];
  for (const { step, loss } of ofKind(events, 'step')) losses[step] = loss;
  return losses;
};

describe('duties by time', () => {
  /** A clock that advances by seven seconds each time it is read. */
  const clock = () => {
    let nowMs = 1e12;
    return () => (nowMs += 7000);
  };
  const timed: GivenSpec = {
    evaluation: { everyStepCount: 0, everySeconds: 60, tokenCount: 128, finalTokenCount: 512 },
    checkpoint: { everyStepCount: 1000, everySeconds: 45 },
    sample: { prompt: 'The ', tokenCount: 4, everySeconds: 90 },
  };

  it('are done as the clock says, and change no bit of the run', async () => {
    const plain = await begin();
    const expected = lossesIn(await runLoop(plain));
    const run = await begin(timed, { steering: { now: clock() } });
    const events = await runLoop(run);
    expect(lossesIn(events)).toEqual(expected);
    expect(await weightsOf(run)).toEqual(await weightsOf(plain));
    // In addition to those at the beginning and the end, and never two for one step.
    for (const [kind, atLeast] of [
      ['evaluation', 4],
      ['checkpoint', 3],
      ['sample', 3],
    ] as const) {
      const at = ofKind(events, kind).map(({ step }) => step);
      expect(at.length).toBeGreaterThanOrEqual(atLeast);
      expect(new Set(at).size).toBe(at.length);
    }
    disposeRun(plain);
    disposeRun(run);
  });

  it('count on over a process that ends before any is due', async () => {
    const doneMs = { evaluation: 0, checkpoint: 0, sample: 0 };
    const run = await begin(timed, { steering: { now: () => 61_000, doneMs } });
    const events = await runLoop(run, ({ kind }) => kind === 'step');
    expect(ofKind(events, 'evaluation').map(({ step }) => step)).toEqual([0]);
    const { path } = await saveCheckpoint(run);
    disposeRun(run);
    // The checkpoint's times take precedence over the server's.
    const next = await begin(timed, {
      checkpointPath: path,
      runFolder: run.folder,
      attempt: 2,
      steering: { now: () => 61_000 + 59_000, doneMs },
    });
    const later = await runLoop(next, ({ kind }) => kind === 'step');
    expect(ofKind(later, 'evaluation')).toEqual([]);
    expect(ofKind(later, 'sample').map(({ step }) => step)).toEqual([1]);
    disposeRun(next);
  });

  it('get on although the process is killed more often than a checkpoint is due', () => {
    // One step per second; killed every 180 seconds, a checkpoint every 300.
    const spec = tinySpec({ checkpoint: { everyStepCount: 0, everySeconds: 300 } });
    let clock = 0;
    let saved = { step: 0, doneMs: 0 };
    const gains: number[] = [];
    for (let attempt = 1; attempt <= 10; attempt++) {
      const { doneMs } = saved;
      const options = { doneMs: { checkpoint: doneMs }, isResumed: saved.step > 0, now: () => clock };
      const steering = new Steering(spec, options);
      const from = saved.step;
      for (let taken = 1; taken <= 180; taken++) {
        clock += 1000;
        if (!steering.isDue('checkpoint', from + taken)) continue;
        steering.done('checkpoint');
        saved = { step: from + taken, doneMs: clock };
      }
      gains.push(saved.step - from);
    }
    // The first attempt is killed before it saves; the second saves what is overdue; each later one keeps most of its work.
    expect(gains).toEqual([0, 120, ...Array.from({ length: 8 }, () => 132)]);
  });
});

describe('a run that is changed while it runs', () => {
  const changes: RunUpdate['change'][] = [
    { learningRateFactor: 0.5 },
    { stepCount: 15, checkpoint: { everyStepCount: 4 } },
  ];

  /** A run that was changed after steps 8 and 14. */
  async function steered() {
    const run = await begin();
    const checkpoints: string[] = [];
    const events = await runLoop(run, async (event) => {
      if (event.kind === 'step' && (event.step === 8 || event.step === 14)) {
        const number = event.step === 8 ? 1 : 2;
        run.steering.add({ number, step: null, change: changes[number - 1]! });
      }
      if (event.kind === 'step' && (event.step === 5 || event.step === 11))
        checkpoints.push((await saveCheckpoint(run)).path);
      return false;
    });
    return { run, events, checkpoints };
  }

  it('reports from which step on, and how the rate jumps', async () => {
    const { run, events } = await steered();
    const schedule = new Schedule(tinySpec());
    const shorter = new Schedule({ ...tinySpec(), stepCount: 15 });
    expect(ofKind(events, 'update')).toEqual([
      {
        kind: 'update',
        number: 1,
        step: 9,
        learningRateFactor: 0.5,
        stepCount: 24,
        learningRateBefore: schedule.learningRateAt(9),
        learningRateAfter: 0.5 * schedule.learningRateAt(9),
      },
      {
        kind: 'update',
        number: 2,
        step: 15,
        learningRateFactor: 0.5,
        stepCount: 21,
        learningRateBefore: 0.5 * schedule.learningRateAt(15),
        learningRateAfter: 0.5 * shorter.learningRateAt(15),
      },
    ]);
    const taken = ofKind(events, 'step');
    expect(taken.at(-1)!.step).toBe(20);
    expect(taken.map(({ learningRate }) => learningRate)).toEqual(
      taken.map(({ step }) =>
        step < 9
          ? schedule.learningRateAt(step)
          : 0.5 * (step < 15 ? schedule : shorter).learningRateAt(step),
      ),
    );
    // Every four steps from there on, and at the end.
    expect(
      ofKind(events, 'checkpoint')
        .map(({ step }) => step)
        .filter((step) => step > 14),
    ).toEqual([16, 20, 21]);
    disposeRun(run);
  });

  it('is repeated to the same bits by its steps, and through a stop before, between and behind its changes', async () => {
    const { run, events, checkpoints } = await steered();
    const expected = { losses: lossesIn(events), weights: await weightsOf(run) };
    const updates = ofKind(events, 'update').map(({ number, step }) => ({
      number,
      step,
      change: changes[number - 1]!,
    }));
    const again = async (options: Partial<BeginRunOptions>) => {
      const next = await begin({}, { steering: { updates }, attempt: 2, ...options });
      const taken = await runLoop(next);
      const losses = lossesIn(taken);
      const first = losses.findIndex((loss) => loss !== undefined);
      expect(losses.slice(first)).toEqual(expected.losses.slice(first));
      expect(await weightsOf(next)).toEqual(expected.weights);
      disposeRun(next);
      return ofKind(taken, 'update').map(({ number, step }) => [number, step]);
    };
    expect(await again({})).toEqual([
      [1, 9],
      [2, 15],
    ]);
    // Resumed after an update it does not report it again; resumed before it does.
    const runFolder = run.folder;
    expect(await again({ checkpointPath: checkpoints[0]!, runFolder })).toEqual([
      [1, 9],
      [2, 15],
    ]);
    expect(await again({ checkpointPath: checkpoints[1]!, runFolder, attempt: 3 })).toEqual([[2, 15]]);
    disposeRun(run);
  });
});

describe('an update that is due later', () => {
  const changes: RunUpdate['change'][] = [
    { learningRateFactor: 0.5, stepCount: 16, checkpoint: { everyStepCount: 4 } },
    { learningRateFactor: 0.8 },
  ];
  const planned: RunUpdate = { number: 1, step: 15, change: changes[0]! };

  it('does not delay one that was made after it, such as a stop', async () => {
    const run = await begin({}, { steering: { updates: [planned] } });
    const events = await runLoop(run, (event) => {
      if (event.kind === 'step' && event.step === 8)
        run.steering.add({ number: 2, step: null, change: { stop: true } });
      return false;
    });
    expect(ofKind(events, 'update')).toMatchObject([{ number: 2, step: 9 }]);
    expect(ofKind(events, 'stop')).toMatchObject([{ step: 9, reason: 'requested' }]);
    disposeRun(run);
  });

  it('sets only what none made after it has set, in a run that resumes before, between and behind them too', async () => {
    const run = await begin({}, { steering: { updates: [planned] } });
    const checkpoints: string[] = [];
    const events = await runLoop(run, async (event) => {
      if (event.kind !== 'step') return false;
      if (event.step === 8) run.steering.add({ number: 2, step: null, change: changes[1]! });
      // The one after step 14 is saved at the step of the first update, before it is applied.
      if ([5, 11, 14, 16].includes(event.step)) checkpoints.push((await saveCheckpoint(run)).path);
      return false;
    });
    const made = (taken: typeof events) => ofKind(taken, 'update').map(({ number, step }) => [number, step]);
    expect(made(events)).toEqual([
      [2, 9],
      [1, 15],
    ]);
    const shorter = new Schedule({ ...tinySpec(), stepCount: 16 });
    const steps = ofKind(events, 'step');
    expect(steps.map(({ learningRate }) => learningRate)).toEqual(
      steps.map(({ step }) =>
        step < 9
          ? new Schedule(tinySpec()).learningRateAt(step)
          : 0.8 * (step < 15 ? new Schedule(tinySpec()) : shorter).learningRateAt(step),
      ),
    );
    expect(steps.at(-1)!.step).toBe(21);
    const saved = ofKind(events, 'checkpoint').map(({ step }) => step);
    expect(saved.filter((step) => step > 14)).toEqual([16, 20, 22]);

    const updates = [planned, { number: 2, step: 9, change: changes[1]! }];
    const expected = { losses: lossesIn(events), weights: await weightsOf(run) };
    for (const [index, left] of [
      [
        [2, 9],
        [1, 15],
      ],
      [[1, 15]],
      [[1, 15]],
      [],
    ].entries()) {
      const next = await begin(
        {},
        {
          checkpointPath: checkpoints[index]!,
          runFolder: run.folder,
          attempt: 2 + index,
          steering: { updates },
        },
      );
      const taken = await runLoop(next);
      expect(made(taken)).toEqual(left);
      const losses = lossesIn(taken);
      const first = losses.findIndex((loss) => loss !== undefined);
      expect(losses.slice(first)).toEqual(expected.losses.slice(first));
      expect(await weightsOf(next)).toEqual(expected.weights);
      disposeRun(next);
    }
    disposeRun(run);
  });
});

describe('the schedule of a run that was changed', () => {
  it('is what it was before a change, and the formula of the new number of steps from there on', () => {
    const spec = tinySpec({ stepCount: 300, adapter: { cycleStepCount: 50 } });
    const steered = new SteeredSchedule(spec);
    steered.change(100, { stepCount: 600 });
    steered.change(150, { learningRateFactor: 2 });
    const [before, after] = [new Schedule(spec), new Schedule({ ...spec, stepCount: 600 })];
    expect(steered.stepCount).toBe(606);
    for (let step = 0; step < 606; step++) {
      const rate = (step < 100 ? before : after).learningRateAt(step);
      expect(steered.learningRateAt(step)).toBe(step < 150 ? rate : 2 * rate);
      expect(steered.phaseAt(step)).toBe(after.phaseAt(step));
      expect(steered.restartNumberAt(step)).toBe(after.restartNumberAt(step));
    }
  });

  it('ends where a run is that was already beyond a smaller number', () => {
    const steered = new SteeredSchedule(tinySpec());
    steered.change(20, { stepCount: 3 });
    expect(steered.stepCount).toBe(20);
    steered.change(20, { learningRateFactor: 2 });
    expect(steered.stepCount).toBe(20);
  });
});
