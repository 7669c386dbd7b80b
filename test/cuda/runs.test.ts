import { describe, expect, it, onTestFinished } from 'vitest';
import {
  beginRun,
  disposeRun,
  openDevice,
  saveCheckpoint,
  trainLoop,
  type Device,
  type RunSpec,
} from '@relora/engine';
import { openCuda, type CudaOptions } from '@relora/engine/cuda';
import { Dataset } from '@relora/engine/data';
import type { GivenSpec } from '@relora/engine/plan';
import { dataFolder } from '../engine/dataFixtures.js';
import {
  interrupted,
  licenseDataset,
  ofKind,
  reported,
  runLoop,
  temporaryFolders,
  tinySpec,
  weightsOf,
} from '../engine/tinyRun.js';
import { model } from './modelCard.js';
import { modelOptions } from './modelPaths.js';

const newFolder = temporaryFolders();
const license = licenseDataset(newFolder, 3000);
const { source, prepare } = dataFolder();

/** Prompts, which are not learned, are so long that some micro-batches, and one step, have nothing to learn. */
async function completions(): Promise<Dataset> {
  const lines = Array.from({ length: 60 }, (_, i) =>
    JSON.stringify({ prompt: `${i} and `.repeat(i % 9), completion: `so ${i}`.repeat(1 + (i % 4)) }),
  );
  const path = await prepare([source('pairs.jsonl', lines.join('\n'), 'jsonl')], {
    pairFields: { prompt: 'prompt', completion: 'completion' },
    heldOutShare: 0.1,
  });
  return Dataset.open(path, { verify: true });
}

const ropeScaling = {
  ...{ factor: 4, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalMaxPositionEmbeddings: 32 },
};

/** Queries in groups; the last micro-batch of each step is shorter than the others. */
const smallSpec = ({ model, adapter, ...more }: GivenSpec) =>
  tinySpec({
    ...{ device: 'cuda', warmStart: { stepCount: 0 }, stepCount: 8, checkpoint: { everyStepCount: 100 } },
    model: { hiddenSize: 16, intermediateSize: 24, numHiddenLayers: 1, maxPositionEmbeddings: 64, ...model },
    batch: { sequenceLength: 13, sequenceCount: 3, microBatchSequenceCount: 2 },
    evaluation: { everyStepCount: 5, tokenCount: 26, finalTokenCount: 26 },
    adapter: adapter === null ? null : { cycleStepCount: 3, restartWarmupStepCount: 1, ...adapter },
    ...more,
  });

const moduleRanks = { q_proj: 3, v_proj: 1, down_proj: 12 };

/** Each setting that a card must support occurs in at least one of these; the golden run has the others (conformance.runs.test.ts). */
const runs: {
  name: string;
  spec: RunSpec;
  texts: () => Promise<Dataset>;
  /** Steps before which a restart is due. */
  restarts: number[];
}[] = [
  {
    name: 'LoRA from the directions of the gradient, moments in eight bits, biases, ranks by module',
    spec: smallSpec({
      ...{ kind: 'lora', optimizer: { momentType: 'int8' }, model: { attentionBias: true } },
      adapter: { rank: 5, moduleRanks, initialisation: 'gradientSvd', cycleStepCount: 8 },
    }),
    texts: license,
    restarts: [],
  },
  {
    name: 'full rank on completions, moments in eight bits, a tied head, scaled rotary embedding',
    spec: smallSpec({
      ...{ kind: 'fullRank', adapter: null, optimizer: { momentType: 'int8' } },
      model: { tieWordEmbeddings: true, ropeScaling },
    }),
    texts: completions,
    restarts: [],
  },
  {
    name: 'growing cycles from the directions of the gradient, moments pruned at random, ranks by module',
    spec: smallSpec({
      adapter: {
        moduleRanks,
        cycleStepCount: 2,
        cycleGrowth: 1.5,
        initialisation: 'gradientSvd',
        momentReset: 'random',
      },
    }),
    texts: license,
    restarts: [2, 5],
  },
  {
    name: 'completions, moments in eight bits pruned by magnitude, biases, a tied head',
    spec: smallSpec({
      ...{ optimizer: { momentType: 'int8' }, model: { attentionBias: true, tieWordEmbeddings: true } },
      adapter: { rank: 5, momentReset: 'magnitude', momentPruneRatio: 0.5 },
    }),
    texts: completions,
    restarts: [3, 6],
  },
  {
    name: 'moments carried to the span of the last cycle, scaled rotary embedding, a trained scale',
    spec: smallSpec({
      model: { ropeScaling },
      adapter: { initialisation: 'oldSpan', momentReset: 'carry', trainableScale: true },
    }),
    texts: license,
    restarts: [3, 6],
  },
];

const card = (precision: 'float32' | 'bfloat16', more: Partial<CudaOptions> = {}) =>
  openCuda({ ...modelOptions, isApart: false, precision, ...more });

const begin =
  (device: Device, dataset: Dataset) =>
  async (spec: RunSpec, options = {}) =>
    beginRun({ spec, device, dataset, runFolder: newFolder(), attempt: 1, ...options });

async function outcomeOf(device: Device, dataset: Dataset, spec: RunSpec) {
  const run = await begin(device, dataset)(spec);
  const events = await runLoop(run);
  const weights = await weightsOf(run);
  disposeRun(run);
  const restarts = ofKind(events, 'restart');
  return {
    ...{ events, weights },
    losses: ofKind(events, 'step').map(({ loss }) => loss),
    evaluations: ofKind(events, 'evaluation').map(({ loss }) => loss),
    restartSteps: restarts.map(({ step }) => step),
    zeroed: restarts.map(({ momentsZeroedRatio }) => momentsZeroedRatio),
    ranks: restarts.flatMap(({ ranks }) => ranks.map(({ effectiveRank }) => effectiveRank)),
  };
}

const farthest = (found: readonly number[], wanted: readonly number[]) => {
  expect(found).toHaveLength(wanted.length);
  return Math.max(0, ...found.map((value, i) => Math.abs(value - wanted[i]!)));
};

describe('a run on a card agrees with the definitions, and when resumed has the same bits', () => {
  it.each(runs)('$name', async ({ spec, texts, restarts }) => {
    const dataset = await texts();
    const wanted = await outcomeOf(
      await openDevice({ device: 'reference', precision: 'float32' }),
      dataset,
      spec,
    );
    expect(wanted.restartSteps).toEqual(restarts);
    const exact = await outcomeOf(card('float32'), dataset, spec);
    const rounded = await outcomeOf(card('bfloat16'), dataset, spec);
    for (const [found, tolerance] of [
      [exact, 1e-5],
      // Operands of products keep 8 significant bits.
      [rounded, 0.002],
    ] as const) {
      expect(found.restartSteps).toEqual(restarts);
      expect(found.zeroed).toEqual(wanted.zeroed);
      expect(farthest(found.losses, wanted.losses)).toBeLessThan(tolerance);
      expect(farthest(found.evaluations, wanted.evaluations)).toBeLessThan(tolerance);
      expect(farthest(found.ranks, wanted.ranks)).toBeLessThan(50 * tolerance);
    }
    const resumed = await interrupted(begin(card('bfloat16'), dataset), spec, 4);
    expect(reported(resumed.events)).toEqual(reported(rounded.events));
    expect(await weightsOf(resumed.run)).toEqual(rounded.weights);
    disposeRun(resumed.run);
  });
});

describe('a run on a card', () => {
  it('leaves the event loop free while the card computes, and ends after the step if it is aborted meanwhile', async () => {
    const device = card('bfloat16');
    const run = await begin(device, await license())(smallSpec({ adapter: { cycleStepCount: 8 } }));
    const abort = new AbortController();
    const heldSeconds = 60; // the longest that a process would wait which does not turn
    const steps: number[] = [];
    let [heldAt, turns, isHeld] = [0, 0, false];
    const turn = () => {
      if (++turns < 20) return void setTimeout(turn);
      isHeld = performance.now() < heldAt + 1000 * heldSeconds;
      abort.abort();
      model.setCard({ heldSeconds: 0 });
    };
    const readResult = device.readResult.bind(device);
    device.readResult = (result) => {
      if (heldAt > 0 && turns === 0) setTimeout(turn);
      return readResult(result);
    };
    for await (const event of trainLoop(run, abort.signal)) {
      if (event.kind !== 'step') continue;
      steps.push(event.step);
      // By then no graph is made any more, which would wait once for the micro-batch before it.
      if (event.step === 3) {
        heldAt = performance.now();
        model.setCard({ heldSeconds });
      } else if (event.step === 4) expect({ turns, isHeld }).toEqual({ turns: 20, isHeld: true });
    }
    expect(steps).toEqual([0, 1, 2, 3, 4]);
    disposeRun(run);
  });

  const plain = { ...modelOptions.libraries, products: [] };
  it.each([
    ['driver', { driverVersion: 13_010 }, {}, /driver 13\.0,.* resumes on .*driver 13\.1,/],
    ['library', {}, { libraries: plain }, /cublasLt \d+\).* resumes on .*cublasLt none\)/],
  ])('that resumes with another %s says so', async (_, changed, options, message) => {
    const dataset = await license();
    const spec = smallSpec({});
    const first = await begin(card('bfloat16'), dataset)(spec);
    await runLoop(first, ({ kind }) => kind === 'step');
    const { path } = await saveCheckpoint(first);
    disposeRun(first);
    onTestFinished(() => model.setCard({ driverVersion: 13_000 }));
    model.setCard(changed);
    const again = { checkpointPath: path, runFolder: first.folder, attempt: 2 };
    const second = await begin(card('bfloat16', options), dataset)(spec, again);
    expect(second.warnings).toMatchObject([
      { reason: 'RESUMED_ON_OTHER_BACKEND', message: expect.stringMatching(message) as string },
    ]);
    disposeRun(second);
  });
});
