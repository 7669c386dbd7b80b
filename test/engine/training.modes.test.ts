import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  selectBackend,
  type BeginRunOptions,
  type RunSpec,
  type TrainingRun,
} from '@relora/engine';
import {
  interrupted,
  licenceDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  tinySpec,
  told,
  weightsOf,
} from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenceDataset(newFolder);

async function begin(spec: RunSpec, options: Partial<BeginRunOptions> = {}, threads = 2): Promise<TrainingRun> {
  const backend = await selectBackend({ device: spec.device, precision: spec.precision, threads });
  return beginRun({
    spec,
    backend,
    dataset: await dataset(),
    runFolder: options.runFolder ?? newFolder(),
    attempt: 1,
    ...options,
  });
}

type Adapter = Partial<NonNullable<RunSpec['adapter']>>;
const svd: Adapter = { initialisation: 'gradientSvd', trainedFactors: 'bOnly' };
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

  it.each([5, 7, 11, 12, 13, 14, 15, 19])(
    'repeats itself bit for bit when it is resumed after step %i',
    async (stopAfter) => {
      const spec = tinySpec({ adapter });
      const whole = await begin(spec);
      const events = await runLoop(whole);
      const resumed = await interrupted(begin, spec, stopAfter);
      expect(told(resumed.events)).toEqual(told(events));
      expect(weightsOf(resumed.run)).toEqual(weightsOf(whole));
      disposeRun(whole);
      disposeRun(resumed.run);
    },
  );

  it('gives the same bits with any number of threads', async () => {
    const weights = [];
    for (const threads of [1, 2, 3]) {
      const run = await begin(tinySpec({ adapter }), {}, threads);
      await runLoop(run);
      weights.push(weightsOf(run));
      disposeRun(run);
    }
    expect(weights[1]).toEqual(weights[0]);
    expect(weights[2]).toEqual(weights[0]);
  });
});
