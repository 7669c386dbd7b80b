import { beforeAll, describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  openDevice,
  trainLoop,
  TrainingDiverged,
  type Device,
  type RunSpec,
  type TrainingEvent,
} from '@relora/engine';
import type { CpuDevice } from '../../engine/dist/device/cpu/cpuDevice.js';
import { change, valuesIn } from './hostModel.js';
import { licenseDataset, ofKind, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
let device: Device;

beforeAll(async () => {
  device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
});

async function begin(spec: RunSpec) {
  return beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
}

describe('the training loop', () => {
  it('reports the whole story of a run in order', async () => {
    const run = await begin(
      tinySpec({
        evaluation: { everyStepCount: 12 },
        checkpoint: { everyStepCount: 10 },
        sample: { everyStepCount: 12 },
      }),
    );
    const events = await runLoop(run);
    const story = events.map((event) => `${event.kind} ${'step' in event ? event.step : ''}`);
    const steps = (from: number, to: number) =>
      Array.from({ length: to - from }, (_, i) => `step ${from + i}`);
    expect(story).toEqual([
      'evaluation 0',
      ...steps(0, 6),
      'plan 6',
      ...steps(6, 10),
      'checkpoint 10',
      ...steps(10, 12),
      'evaluation 12',
      'sample 12',
      'restart 12',
      ...steps(12, 18),
      'restart 18',
      ...steps(18, 20),
      'checkpoint 20',
      ...steps(20, 24),
      'documents 23',
      'evaluation 24',
      'sample 24',
      'checkpoint 24',
    ]);
    const taken = ofKind(events, 'step');
    expect(taken.map(({ phase }) => phase)).toEqual([
      ...Array(6).fill('warmStart'),
      ...Array(18).fill('adapter'),
    ]);
    expect(taken.map(({ learningRate }) => learningRate)).toEqual(
      taken.map(({ step }) => run.schedule.learningRateAt(step)),
    );
    expect(taken.at(-1)).toMatchObject({ tokenCount: 128, trainedTokens: 24 * 128, skipped: false });
    expect(ofKind(events, 'evaluation').map(({ tokenCount }) => tokenCount)).toEqual([512, 128, 512]);
    expect(ofKind(events, 'sample')[0]!.prompt).toBe('The ');
    disposeRun(run);
  });

  it('learns: the loss falls well below where it began, and restarts do not set it back', async () => {
    const run = await begin(
      tinySpec({
        warmStart: { stepCount: 20 },
        stepCount: 120,
        adapter: { cycleStepCount: 30, restartWarmupStepCount: 5, rank: 8 },
        batch: { sequenceLength: 32, sequenceCount: 8, microBatchSequenceCount: 8 },
      }),
    );
    const events = await runLoop(run);
    const losses = ofKind(events, 'step').map(({ loss }) => loss);
    const meanOf = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
    expect(losses[0]!).toBeCloseTo(Math.log(257), 1);
    expect(meanOf(losses.slice(-10))).toBeLessThan(2.7);
    for (const { step } of ofKind(events, 'restart')) {
      expect(meanOf(losses.slice(step, step + 5))).toBeLessThan(meanOf(losses.slice(step - 5, step)) + 0.2);
    }
    const [first, last] = ofKind(events, 'evaluation');
    expect(last!.bitsPerByte).toBeLessThan(first!.bitsPerByte - 3);
    expect(last!.perplexity).toBeCloseTo(Math.exp(last!.loss), 9);
    expect(last!.bitsPerByte).toBeCloseTo(last!.loss / Math.LN2, 9); // each token is one byte here
    disposeRun(run);
  });

  it('keeps the number of buffers over 50 steps and restarts', async () => {
    const run = await begin(
      tinySpec({ warmStart: { stepCount: 0 }, stepCount: 60, adapter: { cycleStepCount: 12 } }),
    );
    const counts = new Map<number, number>();
    const { addon } = run.device as unknown as CpuDevice;
    await runLoop(run, (event) => {
      if (event.kind === 'step') counts.set(event.step, run.device.memory().count);
      return false;
    });
    expect(counts.get(59)).toBe(counts.get(5));
    disposeRun(run);
    expect(run.device.memory()).toEqual(addon.allocations()); // only scratch memory of kernels is left
  });

  it('computes the same step from several micro-batches as from one', async () => {
    const losses = async (microBatchSequenceCount: number) => {
      const run = await begin(tinySpec({ batch: { microBatchSequenceCount } }));
      const events = ofKind(await runLoop(run), 'step');
      disposeRun(run);
      return events;
    };
    const [whole, halves, uneven] = [await losses(4), await losses(2), await losses(3)];
    for (const [index, step] of whole.entries()) {
      // Sums have another order: over 24 steps the difference grows from the last bits.
      expect(Math.abs(halves[index]!.loss - step.loss)).toBeLessThan(2e-3);
      expect(Math.abs(uneven[index]!.loss - step.loss)).toBeLessThan(2e-3);
    }
    expect(halves[0]!.gradientNorm).toBeCloseTo(whole[0]!.gradientNorm, 5);
    expect(uneven[0]!.gradientNorm).toBeCloseTo(whole[0]!.gradientNorm, 5);
  });

  it('stops within a micro-batch and leaves the run as it was before the step', async () => {
    const run = await begin(tinySpec({ batch: { microBatchSequenceCount: 1 } }));
    const abort = new AbortController();
    let count = 0;
    let before = new Map<string, Float32Array>();
    let taken = 0;
    for await (const event of trainLoop(run, abort.signal)) {
      if (event.kind !== 'step') continue;
      if (++taken === 2) ({ count } = run.device.memory()); // by now moments and gradients exist
      if (taken === 3) {
        before = await weightsOf(run);
        const differentiate = run.model.differentiate.bind(run.model);
        let microBatches = 0;
        run.model.differentiate = (...args) => {
          if (++microBatches === 2) abort.abort();
          return differentiate(...args);
        };
        abort.signal.addEventListener('abort', () => {
          run.model.differentiate = () => expect.fail('a micro-batch began after the abort');
        });
      }
    }
    expect(taken).toBe(3);
    expect(await weightsOf(run)).toEqual(before);
    expect(run.progress.nextStep).toBe(3);
    expect(run.progress.trainedTokens).toBe(3 * 128);
    expect(run.device.memory().count).toBe(count);
    disposeRun(run);
  });
});

describe('a loss or gradient that is not finite', () => {
  const poison = (run: Awaited<ReturnType<typeof begin>>) => {
    const norm = run.model.parameters.get('model.norm.weight')!;
    const healthy = valuesIn(run.device, norm);
    change(run.device, norm, () => NaN);
    return () => change(run.device, norm, (_, i) => healthy[i]!);
  };

  it('is skipped and counted up to the limit, and the data continues', async () => {
    const run = await begin(tinySpec({ optimizer: { nonfiniteStepCountMax: 1 } }));
    let heal = () => {};
    let before = new Map<string, Float32Array>();
    const events = await runLoop(run, async (event) => {
      if (event.kind === 'step' && event.step === 2) {
        heal = poison(run);
        before = await weightsOf(run);
      }
      if (event.kind === 'step' && event.step === 3) {
        expect(await weightsOf(run)).toEqual(before);
        heal();
      }
      return false;
    });
    const steps = ofKind(events, 'step');
    expect(steps.map(({ skipped }) => skipped).filter(Boolean)).toHaveLength(1);
    expect(steps[3]!.skipped).toBe(true);
    expect(steps).toHaveLength(24);
    expect(steps.at(-1)!.loss).toBeLessThan(steps[0]!.loss);
    disposeRun(run);
  });

  it('ends the run above the limit, with the step and why', async () => {
    const run = await begin(tinySpec({ optimizer: { nonfiniteStepCountMax: 1 } }));
    const events: TrainingEvent[] = [];
    const ending = (async () => {
      for await (const event of trainLoop(run, new AbortController().signal)) {
        events.push(event);
        if (event.kind === 'step' && event.step === 2) poison(run);
      }
    })();
    await expect(ending).rejects.toThrow(TrainingDiverged);
    await expect(ending).rejects.toMatchObject({ reason: 'TRAINING_DIVERGED', step: 4 });
    expect(ofKind(events, 'step').map(({ skipped }) => skipped)).toEqual([false, false, false, true, true]);
    disposeRun(run);
  });
});
