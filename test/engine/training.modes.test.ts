import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  Llama,
  Schedule,
  openDevice,
  type BeginRunOptions,
  type Device,
  type RunSpec,
  type TrainingRun,
} from '@relora/engine';
import { countParameters } from '@relora/engine/plan';
import type { CpuDevice } from '../../engine/dist/device/cpu/cpuDevice.js';
import { drawA } from '../../engine/dist/model/adapters.js';
import { separateGraphs, type LayerGraph, type LayerGraphs } from '../../engine/dist/plan/adapterGraphs.js';
import { tinyConfig } from './llamaReference.js';
import { change, lossAndGradients, sumLoss, valuesIn } from './hostModel.js';
import {
  interrupted,
  licenseDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  tinySpec,
  reported,
  weightsOf,
} from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

async function begin(
  spec: RunSpec,
  options: Partial<BeginRunOptions> = {},
  threads = 2,
): Promise<TrainingRun> {
  const device = await openDevice({ device: spec.device, precision: spec.precision, threads });
  return beginRun({
    spec,
    device,
    dataset: await dataset(),
    runFolder: options.runFolder ?? newFolder(),
    attempt: 1,
    ...options,
  });
}

type Adapter = Partial<NonNullable<RunSpec['adapter']>>;
const svd: Adapter = { initialisation: 'gradientSvd', trainedFactors: 'bOnly' };
const settings = (adapter: Adapter) => tinySpec({ adapter }).adapter!;
const modes: Record<string, Adapter> = {
  'gradient SVD, B alone': svd,
  'gradient SVD, both': { initialisation: 'gradientSvd' },
  'a frozen random A': { trainedFactors: 'bOnly' },
  'growing cycles': { cycleStepCount: 4, cycleGrowth: 1.5 },
  'full-rank steps between cycles': { fullRankStepCount: 2 },
  'gradient SVD after full-rank steps': { ...svd, fullRankStepCount: 3 },
  'ranks by module': { moduleRanks: { q_proj: 2, down_proj: 7 }, scaling: 'alphaOverSqrtRank' },
  'LoRA+': { bLearningRateRatio: 8 },
};

describe.each(Object.entries(modes))('a run with %s', (_, adapter) => {
  it('learns, changes no output by a merge, and frees all that it takes', async () => {
    const run = await begin(tinySpec({ adapter }));
    const events = await runLoop(run);
    const losses = ofKind(events, 'evaluation').map(({ loss }) => loss);
    expect(losses.at(-1)!).toBeLessThan(losses[0]! - 1);
    const restarts = ofKind(events, 'restart');
    expect(restarts.length).toBeGreaterThanOrEqual(2);
    for (const { logitChangeMax, deltaNorm } of restarts) {
      expect(logitChangeMax).toBeLessThan(1e-5);
      expect(deltaNorm).toBeGreaterThan(0);
    }
    disposeRun(run);
  });

  it.each([7, 12, 13])('repeats itself bit for bit when it is resumed after step %i', async (stopAfter) => {
    const spec = tinySpec({ adapter });
    const whole = await begin(spec);
    const events = await runLoop(whole);
    const resumed = await interrupted(begin, spec, stopAfter);
    expect(reported(resumed.events)).toEqual(reported(events));
    expect(await weightsOf(resumed.run)).toEqual(await weightsOf(whole));
    disposeRun(whole);
    disposeRun(resumed.run);
  });

  it('gives the same bits with any number of threads', async () => {
    const weights = [];
    for (const threads of [1, 2, 3]) {
      const run = await begin(tinySpec({ adapter }), {}, threads);
      await runLoop(run);
      weights.push(await weightsOf(run));
      disposeRun(run);
    }
    expect(weights[1]).toEqual(weights[0]);
    expect(weights[2]).toEqual(weights[0]);
  });
});

const inputs = Int32Array.from({ length: 24 }, (_, i) => (i * 7 + 3) % 37);
const targets = Int32Array.from({ length: 24 }, (_, i) => (i * 5 + 1) % 37);

/** A model with adapters as after training. */
function learned(device: Device, adapter: Adapter, graphs: LayerGraphs = separateGraphs): Llama {
  const model = Llama.create(device, tinyConfig(), 5);
  model.attachAdapters(settings(adapter), 5, 0, { graphs, masterFolder: null });
  for (const parameter of model.parameters.values())
    if (parameter.role === 'adapterB') change(device, parameter, (_, i) => 0.05 * Math.sin(i + 1));
  return model;
}

function gradientsOf(model: Llama): Map<string, Float32Array> {
  return lossAndGradients(model, inputs, targets, 3, 8).gradients;
}

describe('B alone', () => {
  it.each(['separate', 'merged', 'weightGradient'] as const)(
    'has the gradient that it has beside that of A, to the bit, in a %s graph',
    async (graph: LayerGraph) => {
      const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
      const modules = Object.keys(separateGraphs) as (keyof LayerGraphs)[];
      const graphs = Object.fromEntries(modules.map((module) => [module, graph])) as LayerGraphs;
      const both = learned(device, {}, graphs);
      const alone = learned(device, { trainedFactors: 'bOnly' }, graphs);
      const expected = gradientsOf(both);
      const found = gradientsOf(alone);
      expect([...found.keys()]).toEqual([...expected.keys()].filter((name) => !name.endsWith('lora_A')));
      for (const [name, gradient] of found) expect(gradient, name).toEqual(expected.get(name));
      both.dispose();
      alone.dispose();
    },
  );

  it('leaves A as it is within a cycle, and keeps no moments of it', async () => {
    const run = await begin(tinySpec({ adapter: svd }));
    let before: Map<string, Float32Array> | null = null;
    const namesOfA = () => [...run.model.parameters.keys()].filter((name) => name.endsWith('lora_A'));
    await runLoop(run, async (event) => {
      // Right after the first step of a cycle and right before its end.
      if (event.kind === 'step' && event.step === 12) before = await weightsOf(run);
      return event.kind === 'step' && event.step === 16;
    });
    const after = await weightsOf(run);
    expect(namesOfA()).toHaveLength(14);
    for (const name of namesOfA()) {
      expect(after.get(name), name).toEqual(before!.get(name));
      expect(after.has(`${name}.first_moment`)).toBe(false);
      const b = name.replace(/A$/, 'B');
      expect(after.get(b), b).not.toEqual(before!.get(b));
      expect(after.has(`${b}.first_moment`)).toBe(true);
    }
    disposeRun(run);
  });
});

describe('directions of the gradient', () => {
  it.each(['native', 'reference'] as const)(
    'are those along which a trained weight would go, whatever the micro-batches: %s',
    async (device) => {
      const found: Float32Array[] = [];
      for (const microBatchSequenceCount of [4, 1]) {
        const spec = tinySpec({
          device,
          adapter: { ...svd, rank: 2 },
          warmStart: { stepCount: 0 },
          batch: { microBatchSequenceCount },
        });
        const run = await begin(spec);
        const { inputs, targets } = await run.batches.read(0, 4);
        const { gradients } = lossAndGradients(run.model, inputs, targets, 4, 32);
        await runLoop(run, ({ kind }) => kind === 'plan');
        const layer = run.model.layers[3]!;
        const g = gradients.get(layer.weight.name)!;
        const a = valuesIn(run.device, layer.adapter!.a);
        // Columns of A are orthonormal, and capture more of the gradient than any other directions.
        const held = [0, 1].map((k) =>
          Math.hypot(
            ...Array.from({ length: layer.outFeatures }, (_, j) =>
              a.reduce(
                (sum, v, at) => (at % 2 === k ? sum + v * g[((at - k) / 2) * layer.outFeatures + j]! : sum),
                0,
              ),
            ),
          ),
        );
        expect(Math.hypot(...a)).toBeCloseTo(Math.SQRT2, 5);
        expect(held[0]).toBeGreaterThan(held[1]!);
        expect(Math.hypot(...held) / Math.hypot(...g)).toBeGreaterThan(0.5);
        found.push(a);
        disposeRun(run);
      }
      found[1]!.forEach((value, i) => expect(Math.abs(value)).toBeCloseTo(Math.abs(found[0]![i]!), 3));
    },
  );

  it('give B a gradient from the first step on', async () => {
    const run = await begin(tinySpec({ adapter: svd, warmStart: { stepCount: 0 } }));
    await runLoop(run, ({ kind }) => kind === 'plan');
    const { inputs, targets } = await run.batches.read(0, 1);
    const { gradients } = lossAndGradients(run.model, inputs, targets, 1, 32);
    for (const [name, gradient] of gradients)
      if (name.endsWith('lora_B'))
        expect(
          gradient.some((value) => value !== 0),
          name,
        ).toBe(true);
    disposeRun(run);
  });
});

describe('the pass over gradients in which directions are found', () => {
  it('reads the first batch that is not omitted, and none if all that are left are', async () => {
    const omittedSteps = [
      { first: 6, last: 7 },
      { first: 18, last: 23 },
    ];
    const run = await begin({ ...tinySpec({ adapter: svd }), omittedSteps });
    const batches: number[] = [];
    const read = run.batches.read.bind(run.batches);
    run.batches.read = async (firstSequence, count) => {
      if (count === 4) batches.push(firstSequence / 4);
      return await read(firstSequence, count);
    };
    const events = await runLoop(run, ({ kind }) => kind === 'plan');
    expect(batches).toEqual([0, 1, 2, 3, 4, 5, 8, 0]); // the last one is timed
    events.push(...(await runLoop(run)));
    expect(ofKind(events, 'restart').map(({ step }) => step)).toEqual([12, 18]);
    expect(batches.slice(8)).toEqual([8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17]);
    for (const layer of run.model.layers)
      expect(valuesIn(run.device, layer.adapter!.a)).toEqual(drawA(layer, 4, run.spec.seed, 2));
    disposeRun(run);
  });

  it('holds no gradients of a step, at a restart either', async () => {
    const run = await begin(tinySpec({ adapter: { initialisation: 'gradientSvd' } }));
    const device = run.device as CpuDevice;
    const held: number[] = [];
    const watch = run.model.watchGradients.bind(run.model);
    run.model.watchGradients = async (...args) => {
      held.push(device.memory().bytes - device.addon.allocations().bytes);
      await watch(...args);
    };
    await runLoop(run);
    // Since the first pass only moments of the adapters were allocated.
    const { adapter } = countParameters(run.spec);
    expect(held.map((bytes) => bytes - held[0]!)).toEqual([0, 2 * 4 * adapter, 2 * 4 * adapter]);
    disposeRun(run);
  });
});

describe('ranks by module', () => {
  const adapter: Adapter = { moduleRanks: { q_proj: 1, down_proj: 7 }, scaling: 'alphaOverSqrtRank' };

  it('give each layer the shape and the scale of its own rank', async () => {
    const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
    const model = learned(device, adapter);
    for (const layer of model.layers) {
      const rank = { q_proj: 1, down_proj: 7 }[layer.module as string] ?? 4;
      expect(layer.adapter!.a.shape).toEqual([layer.inFeatures, rank]);
      const merged = await model.mergedWeight(layer);
      const w = valuesIn(device, layer.weight);
      const a = valuesIn(device, layer.adapter!.a);
      const b = valuesIn(device, layer.adapter!.b);
      let change = 0;
      for (let k = 0; k < rank; k++) change += a[k]! * b[k * layer.outFeatures]!;
      expect(merged[0]! - w[0]!).toBeCloseTo((8 / Math.sqrt(rank)) * change, 6);
    }
    model.dispose();
  });

  it.each(['q_proj', 'k_proj', 'down_proj'])(
    'have the gradients of finite differences: %s',
    async (module) => {
      const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
      const model = learned(device, adapter);
      const gradients = gradientsOf(model);
      for (const [name, parameter] of model.parameters) {
        if (!name.includes(`${module}.lora_`)) continue;
        const gradient = gradients.get(name)!;
        const norm = Math.hypot(...gradient);
        const values = valuesIn(device, parameter);
        const step = 0.02;
        const [above, below] = [step, -step].map((along) => {
          change(device, parameter, (_, i) => values[i]! + (along * gradient[i]!) / norm);
          const { sum, count } = sumLoss(model, inputs, targets, 3, 8);
          return sum / count;
        });
        change(device, parameter, (_, i) => values[i]!);
        // A float32 loss of about 3.6 has a precision of 4e-7, so its slope over 0.04 has one of 1e-5.
        expect(Math.abs((above! - below!) / (2 * step) - norm), name).toBeLessThan(1e-5 + 0.01 * norm);
      }
      model.dispose();
    },
  );
});

describe('growing cycles', () => {
  const schedule = new Schedule(
    tinySpec({
      adapter: { cycleStepCount: 100, cycleGrowth: 1.5, restartWarmupStepCount: 10, fullRankStepCount: 20 },
      stepCount: 475 + 338,
      warmStart: { stepCount: 50 },
      learningRate: { peak: 1, warmupStepCount: 5 },
    }),
  );

  it('last round(R gᵏ) steps, and every one of them begins with its own warm-up', () => {
    expect(schedule.restartSteps()).toEqual([150, 300, 525]);
    expect([150, 300, 525].map((step) => schedule.restartNumberAt(step))).toEqual([1, 2, 3]);
    for (const step of [151, 250, 301, 450]) expect(schedule.restartNumberAt(step)).toBe(0);
    for (const step of [150, 300, 525]) {
      // Full-rank steps at the rate of a warm start, then adapters; both rates start from zero.
      expect(schedule.phaseAt(step - 1)).toBe('adapter');
      expect(schedule.phaseAt(step)).toBe('fullRank');
      expect(schedule.phaseAt(step + 19)).toBe('fullRank');
      expect(schedule.phaseAt(step + 20)).toBe('adapter');
      expect(schedule.beginsAdapters(step + 20)).toBe(true);
      expect(schedule.learningRateAt(step)).toBe(0);
      expect(schedule.learningRateAt(step + 1)).toBeLessThan(3e-3);
      expect(schedule.learningRateAt(step + 20)).toBe(0);
      expect(schedule.learningRateAt(step + 25) / schedule.learningRateAt(step + 30)).toBeCloseTo(0.5, 6);
    }
    expect(schedule.fullRankStepCountBetween).toBe(60);
  });
});

describe('LoRA+', () => {
  it('moves B by the ratio times what A moves, and the rest as ever', async () => {
    const changes = [];
    for (const bLearningRateRatio of [1, 4]) {
      const run = await begin(
        tinySpec({
          warmStart: { stepCount: 0 },
          adapter: { bLearningRateRatio },
          learningRate: { schedule: 'constant', warmupStepCount: 0 },
        }),
      );
      const before = new Map<string, Float32Array>();
      await runLoop(run, async ({ kind }) => {
        if (kind === 'plan' || kind === 'evaluation')
          (await weightsOf(run)).forEach((w, name) => before.set(name, w));
        return kind === 'step';
      });
      const after = await weightsOf(run);
      changes.push(
        new Map([...before].map(([name, w]) => [name, after.get(name)!.map((value, i) => value - w[i]!)])),
      );
      disposeRun(run);
    }
    const [one, four] = changes;
    for (const [name, change] of four!) {
      const factor = name.endsWith('lora_B') ? 4 : 1;
      change.forEach((value, i) => expect(Math.abs(value - factor * one!.get(name)![i]!)).toBeLessThan(1e-8));
    }
  });
});

describe('steps that the job asks to omit', () => {
  it('are passed over without an update, reported, and not counted as skipped', async () => {
    const omittedSteps = [
      { first: 2, last: 3 },
      { first: 12, last: 12 },
    ];
    const run = await begin({ ...tinySpec(), omittedSteps });
    let before: Map<string, Float32Array> | null = null;
    const events = await runLoop(run, async (event) => {
      if (event.kind === 'step' && event.step === 1) before = await weightsOf(run);
      if (event.kind === 'step' && event.step === 3) expect(await weightsOf(run)).toEqual(before);
      return false;
    });
    const steps = ofKind(events, 'step');
    expect(steps.map(({ step }) => step)).toEqual(Array.from({ length: 24 }, (_, i) => i));
    const omitted = steps.filter((event) => event.omitted);
    expect(omitted.map(({ step, skipped, tokenCount }) => [step, skipped, tokenCount])).toEqual([
      [2, false, 0],
      [3, false, 0],
      [12, false, 0],
    ]);
    expect(run.progress.skippedStepCount).toBe(0);
    expect(run.progress.trainedTokens).toBe(21 * 128);
    expect(ofKind(events, 'restart').map(({ step }) => step)).toEqual([12, 18]);
    disposeRun(run);
  });
});
