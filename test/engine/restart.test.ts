import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  MergeNotFinite,
  openDevice,
  type RunSpec,
  type TrainingRun,
} from '@relora/engine';
import { change, lossAndGradients, valuesIn } from './hostModel.js';
import { licenseDataset, ofKind, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

async function begin(spec: RunSpec): Promise<TrainingRun> {
  const device = await openDevice({ device: spec.device, precision: spec.precision, threads: 2 });
  return beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
}

/** Runs to right before and right after the first restart, which is before step 12. */
async function aroundRestart(spec: RunSpec) {
  const run = await begin(spec);
  await runLoop(run, (event) => event.kind === 'step' && event.step === 11);
  const before = await weightsOf(run);
  const counts = run.optimizer.stepCounts;
  const events = await runLoop(run, ({ kind }) => kind === 'restart');
  return { run, before, counts, after: await weightsOf(run), restart: ofKind(events, 'restart')[0]! };
}

describe('a restart', () => {
  it.each(['native', 'reference'] as const)(
    'leaves what the model computes as it was, on %s',
    async (device) => {
      const small = {
        device,
        batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 2 },
        evaluation: { finalTokenCount: 16 },
      };
      const { run, restart, before, after } = await aroundRestart(tinySpec(small));
      expect(restart).toMatchObject({ step: 12, restart: 1 });
      expect(restart.deltaNorm).toBeGreaterThan(0.1);
      expect(restart.logitChangeMax).toBeGreaterThan(0); // all of W was rounded again
      expect(restart.logitChangeMax).toBeLessThan(2e-5);
      const name = 'model.layers.0.mlp.up_proj';
      expect(after.get(`${name}.weight`)).not.toEqual(before.get(`${name}.weight`));
      expect(after.get(`${name}.lora_A`)).not.toEqual(before.get(`${name}.lora_A`));
      expect(after.get(`${name}.lora_B`)!.every((value) => value === 0)).toBe(true);
      disposeRun(run);
    },
  );

  it('forgets the moments of A and B, and leaves all others as they are, byte for byte', async () => {
    const { run, restart, before, counts, after } = await aroundRestart(
      tinySpec({ adapter: { trainableScale: true } }),
    );
    expect(restart.momentsZeroedRatio).toBe(1);
    const moments = [...after.keys()].filter((name) => name.endsWith('_moment'));
    const forgotten = moments.filter((name) => /lora_[AB]\./.test(name));
    expect(forgotten).toHaveLength(2 * 7 * 2 * 2);
    for (const name of forgotten) {
      expect(before.get(name)!.some((value) => value !== 0)).toBe(true);
      expect(after.get(name)!.every((value) => Object.is(value, 0))).toBe(true);
    }
    const kept = moments.filter((name) => !forgotten.includes(name));
    expect(kept.some((name) => name.includes('lora_scale'))).toBe(true);
    for (const name of kept) expect(after.get(name)).toEqual(before.get(name));
    expect(run.optimizer.stepCounts).toEqual({ ...counts, adapter: 0 });
    disposeRun(run);
  });

  it.each([
    ['magnitude', 0.9],
    ['random', 0.5],
  ] as const)('prunes by %s the share that it reports', async (momentReset, momentPruneRatio) => {
    const { run, restart, counts, after } = await aroundRestart(
      tinySpec({ adapter: { momentReset, momentPruneRatio } }),
    );
    const values = [...after]
      .filter(([name]) => /lora_[AB]\..*_moment/.test(name))
      .flatMap(([, moment]) => [...moment]);
    expect(restart.momentsZeroedRatio).toBe(values.filter((value) => value === 0).length / values.length);
    expect(Math.abs(restart.momentsZeroedRatio - momentPruneRatio)).toBeLessThan(0.03);
    expect(run.optimizer.stepCounts.adapter).toBe(counts.adapter);
    disposeRun(run);
  });

  it.each(['magnitude', 'random'] as const)(
    'prunes by %s and continues with updates of the usual size, also at a full rate and without a gradient',
    async (momentReset) => {
      const peak = 6e-3;
      const { run, after } = await aroundRestart(
        tinySpec({ adapter: { momentReset }, learningRate: { peak, schedule: 'constant' } }),
      );
      await runLoop(run, (event) => event.kind === 'step' && event.step === 12);
      for (const { adapter } of run.model.layers) {
        for (const parameter of [adapter!.a, adapter!.b]) {
          const { name } = parameter;
          const before = after.get(name)!;
          const largest = valuesIn(run.device, parameter).reduce(
            (most, value, index) => Math.max(most, Math.abs(value - before[index]!)),
            0,
          );
          // (1 - beta1) / sqrt(1 - beta2) = 3.2 times the rate if both moments were reset.
          expect(largest, name).toBeLessThan(5 * peak);
        }
      }
      disposeRun(run);
    },
  );

  it('leaves adapters that learn: B has a gradient at once, A from the next step on', async () => {
    const { run } = await aroundRestart(tinySpec());
    const { inputs, targets } = await run.batches.read(0, 4);
    const { gradients } = lossAndGradients(run.model, inputs, targets, 4, 32);
    for (const { adapter } of run.model.layers) {
      expect(gradients.get(adapter!.b.name)!.some((value) => value !== 0)).toBe(true);
    }
    // The rate of step 12 is 0, so A's gradient, which depends on B, first appears in step 14.
    const adapterA = () => valuesIn(run.device, run.model.layers[0]!.adapter!.a);
    const before = adapterA();
    await runLoop(run, (event) => event.kind === 'step' && event.step === 14);
    expect(adapterA()).not.toEqual(before);
    disposeRun(run);
  });

  it('comes at every cycle and at no other step, also after a warm start', async () => {
    const run = await begin(tinySpec({ warmStart: { stepCount: 5 }, stepCount: 24 }));
    const restarts = ofKind(await runLoop(run), 'restart');
    expect(restarts.map(({ step }) => step)).toEqual([11, 17, 23]);
    expect(restarts.map(({ restart }) => restart)).toEqual([1, 2, 3]);
    disposeRun(run);
  });

  it('happens in no lora run', async () => {
    const run = await begin(tinySpec({ kind: 'lora', adapter: { cycleStepCount: 18 } }));
    const events = await runLoop(run);
    expect(ofKind(events, 'restart')).toEqual([]);
    expect(ofKind(events, 'step')).toHaveLength(24);
    expect(run.model.adapterSettings).not.toBeNull();
    disposeRun(run);
  });

  it('refuses an adapter that is not finite, with the layer, and changes no weight', async () => {
    const run = await begin(tinySpec());
    await runLoop(run, (event) => event.kind === 'step' && event.step === 11);
    change(run.device, run.model.layers.at(-1)!.adapter!.b, () => Infinity);
    const before = await weightsOf(run);
    await expect(runLoop(run)).rejects.toThrow(MergeNotFinite);
    await expect(runLoop(run)).rejects.toMatchObject({
      reason: 'MERGE_NOT_FINITE',
      layer: 'model.layers.1.mlp.down_proj',
    });
    expect(await weightsOf(run)).toEqual(before);
    disposeRun(run);
  });
});

describe('the rank of what was learned', () => {
  it("is at most the adapter's after one cycle, and grows past it over cycles", async () => {
    const rank = 2;
    const spec = tinySpec({
      adapter: { rank, cycleStepCount: 10 },
      stepCount: 60,
      learningRate: { peak: 1e-2 },
    });
    const run = await begin(spec);
    const restarts = ofKind(await runLoop(run), 'restart');
    expect(restarts).toHaveLength(5);
    for (const [index, restart] of restarts.entries()) {
      expect(restart.ranks).toHaveLength(14);
      for (const layer of restart.ranks) {
        expect(layer.adapterRank).toBe(rank);
        expect(layer.rankAboveOnePercent).toBeLessThanOrEqual(rank * (index + 1));
        // Rounding of the merged weights adds small components in all directions.
        expect(layer.effectiveRank).toBeLessThan(rank * (index + 1) + 0.1);
      }
      const mean =
        restart.ranks.reduce((sum, { effectiveRank }) => sum + effectiveRank, 0) / restart.ranks.length;
      expect(restart.effectiveRank).toBeCloseTo(mean, 12);
    }
    const last = restarts.at(-1)!;
    expect(last.effectiveRank).toBeGreaterThan(2 * rank);
    for (const layer of last.ranks) expect(layer.rankAboveOnePercent).toBeGreaterThan(rank);
    disposeRun(run);
  });
});
