import { presets, readStoredRunSpec, targetModules } from '../../engine/dist/plan/index.js';

/**
 * What is trained. Small enough for many runs on two cores, and with a rank far below the width: a LoRA whose rank is near
 * the width is full-rank training by another name. Bytes keep embedding and head, which all modes train in full, from being
 * most of the model and from deciding how fast a short run learns.
 */
export const plan = {
  preset: 'llama-9m',
  vocabSize: 257,
  rank: 8,
  stepCount: 500,
  warmStartStepCount: 100,
  cycleStepCount: 100,
  restartWarmupStepCount: 8,
  warmupStepCount: 50,
  batch: { sequenceLength: 128, sequenceCount: 8, microBatchSequenceCount: 8 },
  evaluationCount: 5,
  heldOutTokenCount: 65_536,
  precision: 'bfloat16',
};

/**
 * The modes compared, in the order of the table. `rates` are where the search for a mode's rate begins, in multiples of full
 * rank's best; those of full rank itself are absolute. `settings` are what differs from the plan.
 */
export const modes = [
  { name: 'fullRank', label: 'full-rank', kind: 'fullRank', rates: [1e-3, 2e-3, 4e-3] },
  { name: 'relora', label: 'ReLoRA', kind: 'relora', rates: [1, 2, 4] },
  { name: 'loraWarm', label: 'LoRA with warm start', kind: 'lora', rates: [1, 2, 4] },
  {
    name: 'lora',
    label: 'LoRA',
    kind: 'lora',
    rates: [1, 2, 4],
    settings: { warmStartStepCount: 0 },
  },
  {
    name: 'gradientStart',
    label: 'ReLoRA, gradient-SVD start',
    kind: 'relora',
    rates: [1, 2, 4],
    settings: { adapter: { initialisation: 'gradientSvd' } },
  },
  {
    // LoQT without its quantisation (arXiv 2405.16528). B alone stays within the rows that A chose, so its cycles are short.
    name: 'gradientStartB',
    label: 'gradient-SVD start, B alone',
    kind: 'relora',
    rates: [1, 2, 4],
    note: 'no warm start',
    settings: {
      warmStartStepCount: 0,
      cycleStepCount: 25,
      restartWarmupStepCount: 4,
      adapter: { initialisation: 'gradientSvd', trainedFactors: 'bOnly' },
    },
  },
  {
    name: 'fullRankBetween',
    label: 'ReLoRA, full-rank steps between',
    kind: 'relora',
    rates: [1, 2, 4],
    note: '25 of them full-rank',
    settings: { adapter: { fullRankStepCount: 25 } },
  },
  {
    name: 'longWarm',
    label: 'ReLoRA, half warm start',
    kind: 'relora',
    rates: [1, 2, 4],
    settings: { warmStartStepCount: 250 },
  },
];

/** The specification of one run: a mode at a rate and with a seed, everything else being the plan's. */
export function specOf(plan, mode, { rate, warmStartRate, seed }) {
  const { kind } = mode;
  const isFullRank = kind === 'fullRank';
  const { adapter = {}, ...settings } = mode.settings ?? {};
  const { stepCount, warmupStepCount, ...own } = { ...plan, ...settings };
  const warmStartStepCount = isFullRank ? 0 : own.warmStartStepCount;
  const mainStepCount = stepCount - warmStartStepCount;
  // As a stored specification: settings that are not named here have their defaults.
  return readStoredRunSpec(
    JSON.stringify({
      kind,
      model: { ...(plan.shape ?? presets[plan.preset]), vocabSize: plan.vocabSize },
      baseWeightsFolder: null,
      dataset: 'datasets/convergence',
      warmStart: { stepCount: warmStartStepCount, learningRate: warmStartRate ?? rate, warmupStepCount },
      adapter: isFullRank
        ? null
        : {
            rank: own.rank,
            alpha: own.rank,
            dropout: 0,
            cycleStepCount: kind === 'lora' ? mainStepCount : own.cycleStepCount,
            restartWarmupStepCount: kind === 'lora' ? 0 : own.restartWarmupStepCount,
            momentReset: 'zero',
            momentPruneRatio: 0.9,
            targetModules,
            trainableScale: false,
            ...adapter,
          },
      stepCount: mainStepCount,
      learningRate: { peak: rate, schedule: 'jaggedCosine', warmupStepCount, minRatio: 0.1 },
      optimizer: {
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weightDecay: 0,
        gradientNormMax: 1,
        nonfiniteStepCountMax: 0,
      },
      batch: own.batch,
      precision: own.precision,
      seed,
      // The same text each time: a curve whose last point is on other text than the others would have a kink.
      evaluation: {
        everyStepCount: Math.ceil(stepCount / own.evaluationCount),
        tokenCount: own.heldOutTokenCount,
        finalTokenCount: own.heldOutTokenCount,
      },
      checkpoint: { everyStepCount: 0, keepCount: 1 },
      sample: { everyStepCount: 0, prompt: '', tokenCount: 1 },
      export: { weightType: 'float32' },
      priority: 0,
      device: 'native',
    }),
  );
}
