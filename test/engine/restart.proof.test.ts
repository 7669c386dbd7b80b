import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  MergeDrift,
  openDevice,
  verifyCheckpoint,
  type LayerAdapter,
  type RunSpec,
  type TrainingRun,
} from '@relora/engine';
import type { LinearLayer } from '../../engine/dist/model/linearLayer.js';
import { Optimizer } from '../../engine/dist/training/optimizer.js';
import { relativeTolerance } from '../../engine/dist/training/mergeDrift.js';
import { change, valuesIn } from './hostModel.js';
import { licenseDataset, ofKind, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

async function begin(spec: RunSpec): Promise<TrainingRun> {
  const device = await openDevice({ device: spec.device, precision: spec.precision, threads: 2 });
  return beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
}

const beforeFirstRestart = (event: { kind: string; step?: number }) =>
  event.kind === 'step' && event.step === 11;

/** Keeps the product A · B, but with terms so large that float32 loses the result in their sum. */
function makeUnmergeable({ device }: TrainingRun, { adapter }: LinearLayer, size: number): void {
  const { a, b } = adapter!;
  const [inFeatures, rank] = a.shape as [number, number];
  const valuesOfA = valuesIn(device, a);
  // All columns of A equal, and rows of B that cancel each other.
  for (let i = 0; i < valuesOfA.length; i++) valuesOfA[i] = valuesOfA[Math.floor(i / rank) * rank]!;
  const valuesOfB = valuesIn(device, b);
  const width = valuesOfB.length / rank;
  for (let i = 0; i < valuesOfB.length; i++) {
    const [row, column] = [Math.floor(i / width), i % width];
    const share = [0.7, -0.4, 0.9, -1.2][row]!;
    valuesOfB[i] = share * size * (1 + column / 7);
  }
  expect(inFeatures * rank).toBe(valuesOfA.length);
  change(device, a, (_, i) => valuesOfA[i]!);
  change(device, b, (_, i) => valuesOfB[i]!);
}

describe('the proof of a restart', () => {
  it.each(['float32', 'auto', 'int8Base', 'nf4Base'] as const)(
    'shows that a merge is far within what it is held to, in %s, and what it did to each kind of layer',
    async (precision) => {
      const run = await begin(tinySpec({ precision, evaluation: { finalTokenCount: 32 } }));
      const restarts = ofKind(await runLoop(run), 'restart');
      expect(restarts).toHaveLength(2);
      for (const restart of restarts) {
        expect(restart.logitChangeMax).toBeLessThan(restart.logitChangeTolerance / 8);
        const { schedule, layers } = { ...run, layers: run.model.layers };
        expect(restart.learningRateBefore).toBe(schedule.learningRateAt(restart.step - 1));
        expect(restart.learningRateAfter).toBe(0);
        // nf4's rounding error of a weight, at most an eighth of the largest in its block, occurs again at each merge.
        const lossTolerance = { float32: 1e-5, auto: 0.01, int8Base: 0.02, nf4Base: 0.3 }[precision];
        expect(Math.abs(restart.lossAfter - restart.lossBefore)).toBeLessThan(lossTolerance);
        expect(restart.lossBefore).toBeGreaterThan(1);

        expect(restart.modules.map(({ module }) => module)).toEqual(run.spec.adapter!.targetModules);
        const squares = restart.modules.reduce((sum, { deltaNorm }) => sum + deltaNorm ** 2, 0);
        expect(Math.sqrt(squares)).toBeCloseTo(restart.deltaNorm, 10);
        for (const kind of restart.modules) {
          const ranks = restart.ranks.filter(({ layer }) => layer.endsWith(kind.module));
          expect(kind.measuredLayerCount).toBe(ranks.length);
          expect(ranks).toHaveLength(layers.length / 7);
          const sum = ranks.reduce((total, { effectiveRank }) => total + effectiveRank, 0);
          expect(kind.effectiveRank).toBeCloseTo(sum / ranks.length, 12);
          const above = ranks.reduce((total, { rankAboveOnePercent }) => total + rankAboveOnePercent, 0);
          expect(kind.rankAboveOnePercent).toBe(above / ranks.length);
        }
      }
      disposeRun(run);
    },
  );

  it('fails a merge that float32 cannot hold, with the layer, and leaves the last checkpoint usable', async () => {
    // A merged graph would have computed the same sum before.
    const spec = tinySpec({ adapter: { graph: 'separate' }, checkpoint: { everyStepCount: 11 } });
    const run = await begin(spec);
    const events = await runLoop(run, beforeFirstRestart);
    const layer = run.model.layers.find(({ name }) => name === 'model.layers.1.mlp.up_proj')!;
    makeUnmergeable(run, layer, 1e6);
    const failure = await runLoop(run).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(MergeDrift);
    expect(failure).toMatchObject({ reason: 'MERGE_DRIFT', layer: layer.name });
    const { logitChange } = failure as MergeDrift;
    expect(logitChange.largest).toBeGreaterThan(logitChange.tolerance);
    disposeRun(run);

    const { path, manifestSha256 } = ofKind(events, 'checkpoint')[0]!;
    await verifyCheckpoint(path, { manifestSha256 });
    const again = await beginRun({
      spec,
      device: run.device,
      dataset: await dataset(),
      runFolder: run.folder,
      attempt: 2,
      checkpointPath: path,
      manifestSha256,
    });
    expect(ofKind(await runLoop(again), 'restart')).toHaveLength(2);
    disposeRun(again);
  });

  it('names the layer whose weight a merge left wrong', async () => {
    // The base is packed as bfloat16, but the probe uses the weight itself.
    const run = await begin(tinySpec({ precision: 'bfloat16' }));
    await runLoop(run, beforeFirstRestart);
    const { model } = run;
    const layer = model.layers.find(({ name }) => name === 'model.layers.0.self_attn.v_proj')!;
    const merge = model.mergeAdapters.bind(model);
    model.mergeAdapters = async () => {
      const merged = await merge();
      // Rounded to bfloat16, as in implementations that merge into bfloat16 weights.
      const bits = new Uint32Array(valuesIn(run.device, layer.weight).buffer);
      const rounded = new Float32Array(bits.map((word) => (word + 0x8000) & 0xffff0000).buffer);
      change(run.device, layer.weight, (_, i) => rounded[i]!);
      return merged;
    };
    await expect(runLoop(run)).rejects.toMatchObject({ reason: 'MERGE_DRIFT', layer: layer.name });
    disposeRun(run);
  });

  it.each(['merged', 'weightGradient', 'separate'] as const)(
    'takes the function before by W and the adapter apart, also in a %s graph: a wrong merge is seen',
    async (graph) => {
      const right = await begin(tinySpec({ adapter: { graph } }));
      const [restart] = ofKind(await runLoop(right, ({ kind }) => kind === 'restart'), 'restart');
      // Two ways of computing one function differ by rounding; the same way twice would give no difference.
      expect(restart!.logitChangeMax).toBeGreaterThan(0);
      expect(restart!.logitChangeMax).toBeLessThan(restart!.logitChangeTolerance);
      disposeRun(right);

      // Emulates a kernel that uses a scale that is a thousandth too large wherever it merges an adapter.
      const wrong = await begin(tinySpec({ adapter: { graph } }));
      const { device } = wrong;
      const more = (adapter: LayerAdapter) => ({ ...adapter, scale: 1.001 * (adapter.scale as number) });
      const packMerged = device.packMerged.bind(device);
      const mergeAdapter = device.mergeAdapter.bind(device);
      device.packMerged = (base, weight, adapter) => packMerged(base, weight, more(adapter));
      device.mergeAdapter = (into, weight, adapter, shape) =>
        mergeAdapter(into, weight, more(adapter), shape);
      await expect(runLoop(wrong)).rejects.toMatchObject({ reason: 'MERGE_DRIFT' });
      disposeRun(wrong);
    },
  );

  it('fails a restart whose moments were to be zero and are not', async () => {
    class Forgetful extends Optimizer {
      override forgetAdapters(_mode: string, ratio: number, uniform: () => number): Promise<number> {
        return super.forgetAdapters('random', ratio, uniform);
      }
    }
    const run = await begin(tinySpec());
    const { optimizer } = run;
    const forgetful: TrainingRun = { ...run, optimizer: new Forgetful(run.device, run.spec.optimizer) };
    await expect(runLoop(forgetful)).rejects.toMatchObject({ reason: 'MOMENTS_NOT_ZERO', restart: 1 });
    optimizer.dispose();
    disposeRun(forgetful);
  });

  it('is held to the rounding of the sums on the way: more for wide and deep models, and for TF32', () => {
    const { model } = tinySpec();
    const tolerance = (changes: Partial<typeof model>, name: 'native' | 'tensorflow' = 'native') =>
      relativeTolerance({ ...model, ...changes }, 32, { name });
    expect(tolerance({ numHiddenLayers: 8 })).toBeGreaterThan(3 * tolerance({}));
    expect(tolerance({}, 'tensorflow') / tolerance({})).toBe(2 ** 13);
    // For a 7B model: still less than a hundredth of the effect of rounding to bfloat16.
    const large = { hiddenSize: 4096, intermediateSize: 11_008, numHiddenLayers: 32, numAttentionHeads: 32 };
    expect(tolerance(large)).toBeLessThan(0.02);
  });
});
