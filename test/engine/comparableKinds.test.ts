import { describe, expect, it } from 'vitest';
import { beginRun, disposeRun, openDevice, type RunSpec } from '@relora/engine';
import { licenseDataset, ofKind, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

/** The initial state of a run and the data of its first steps. */
async function beginning(spec: RunSpec) {
  const device = await openDevice({ device: 'native', precision: 'float32' });
  const run = await beginRun({
    spec,
    device,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
  });
  const weights = await weightsOf(run);
  const { sequenceCount, sequenceLength } = spec.batch;
  const batches = [];
  for (let step = 0; step < run.schedule.stepCount; step++)
    batches.push(await run.batches.read(step * sequenceCount, sequenceCount));
  const heldOut = [];
  const shape = { sequenceLength, sequenceCount, tokenCount: spec.evaluation.finalTokenCount };
  for await (const batch of run.dataset.heldOutBatches(shape)) heldOut.push(batch);
  const events = await runLoop(run);
  disposeRun(run);
  const losses = ofKind(events, 'step').map(({ loss }) => loss);
  const evaluations = ofKind(events, 'evaluation');
  return { weights, batches, heldOut, losses, evaluations };
}

/** The same number of steps by each kind; the first of them are full-rank if there is a warm start. */
function kindsOf(warmStartSteps: number, seed: number): Record<RunSpec['kind'], RunSpec> {
  const warmStart = { stepCount: warmStartSteps, learningRate: 3e-3, warmupStepCount: 2 };
  const relora = tinySpec({ warmStart, stepCount: 12, seed });
  const { adapter } = relora;
  return {
    relora,
    lora: { ...relora, kind: 'lora', adapter: { ...adapter!, cycleStepCount: 12 } },
    fullRank: {
      ...relora,
      kind: 'fullRank',
      adapter: null,
      warmStart: { ...relora.warmStart, stepCount: 0 },
      stepCount: 12 + warmStartSteps,
      learningRate: { peak: 3e-3, schedule: 'cosine', warmupStepCount: 2, minRatio: 0.1 },
    },
  };
}

describe.each([0, 6])('kinds of training with %i steps of warm start', (warmStartSteps) => {
  it('have the same weights, batches and held-out part for the same seed, to the bit', async () => {
    const { relora, lora, fullRank } = kindsOf(warmStartSteps, 17);
    const full = await beginning(fullRank);
    expect(full.batches).toHaveLength(12 + warmStartSteps);
    for (const spec of [relora, lora]) {
      const low = await beginning(spec);
      expect(low.weights).toEqual(full.weights);
      expect(low.batches).toEqual(full.batches);
      expect(low.heldOut).toEqual(full.heldOut);
      // As a job reports it: the evaluation before training, and the loss of the first step.
      expect({ ...low.evaluations[0], seconds: 0 }).toEqual({ ...full.evaluations[0], seconds: 0 });
      expect(low.losses[0]).toBe(full.losses[0]);
      expect(low.losses.at(-1)).not.toBe(full.losses.at(-1));
    }
  });

  it('have others for another seed', async () => {
    const [one, other] = [kindsOf(warmStartSteps, 17).relora, kindsOf(warmStartSteps, 18).relora];
    const [first, second] = [await beginning(one), await beginning(other)];
    expect(second.weights).not.toEqual(first.weights);
    expect(second.batches).not.toEqual(first.batches);
    expect(second.heldOut).toEqual(first.heldOut);
  });
});

it('ReLoRA and LoRA are one training up to the first restart', async () => {
  const { relora, lora } = kindsOf(6, 17);
  const learningRate = { peak: 6e-3, schedule: 'constant' as const, warmupStepCount: 2, minRatio: 1 };
  const [first, second] = [
    await beginning({ ...relora, learningRate }),
    await beginning({ ...lora, learningRate }),
  ];
  const restart = 6 + relora.adapter!.cycleStepCount;
  expect(second.losses.slice(0, restart)).toEqual(first.losses.slice(0, restart));
  expect(second.losses.at(-1)).not.toBe(first.losses.at(-1));
});
