import { defaultRunSpec, presets } from '../../engine/dist/plan/index.js';

/**
 * The model. Small enough for many runs on two cores. With bytes as tokens, embedding and head, which all modes train in full, are not most
 * of the model and do not determine how fast a short run learns. The rank is a thirty-second of the width, like 128 in a 7B model, so that
 * a LoRA cannot represent what full rank learns.
 */
export const plan = {
  preset: 'llama-9m',
  vocabSize: 257,
  rank: 4,
  stepCount: 2000,
  warmStartStepCount: 0,
  cycleStepCount: 400,
  restartWarmupStepCount: 20,
  warmupStepCount: 100,
  batch: { sequenceLength: 128, sequenceCount: 8, microBatchSequenceCount: 8 },
  evaluationCount: 10,
  heldOutTokenCount: 65_536,
  precision: 'bfloat16',
};

/** A fifth of the run. */
const warmStart = { warmStartStepCount: 400 };
/** A quarter of the width, as in the 60M models of the paper and of LoQT. */
const quarter = { rank: 32 };
/**
 * LoQT without its quantization (arXiv 2405.16528). With A frozen, updates stay within the row space that A chose, so its cycles are short.
 */
const gradientStartB = {
  cycleStepCount: 100,
  restartWarmupStepCount: 10,
  adapter: { initialisation: 'gradientSvd', trainedFactors: 'bOnly' },
};

/**
 * The modes compared, in the order of the table. Full rank searches for the learning rate, starting with `rates`. The others train
 * embedding, norms and head at that rate, and search for how far their adapters move: the scale alpha / rank, starting with `scales`, which
 * under Adam is equivalent to the adapters' rate. `settings` are the differences from the plan.
 */
export const modes = [
  { name: 'fullRank', label: 'full-rank', kind: 'fullRank', rates: [1e-3, 2e-3, 4e-3] },
  { name: 'relora', label: 'ReLoRA', kind: 'relora', scales: [4, 8, 16] },
  { name: 'lora', label: 'LoRA', kind: 'lora', scales: [2, 4, 8] },
  {
    name: 'reloraWarm',
    label: 'ReLoRA, warm start',
    kind: 'relora',
    scales: [8, 16, 32],
    settings: warmStart,
  },
  { name: 'loraWarm', label: 'LoRA, warm start', kind: 'lora', scales: [4, 8, 16], settings: warmStart },
  {
    name: 'gradientStart',
    label: 'ReLoRA, gradient-SVD start',
    kind: 'relora',
    scales: [4, 8, 16],
    settings: { adapter: { initialisation: 'gradientSvd' } },
  },
  {
    name: 'gradientStartB',
    label: 'gradient-SVD start, B alone',
    kind: 'relora',
    scales: [1, 2, 4],
    settings: gradientStartB,
  },
  {
    name: 'fullRankBetween',
    label: 'ReLoRA, full-rank steps between',
    kind: 'relora',
    scales: [4, 8, 16],
    note: '25 of a cycle full-rank',
    settings: { adapter: { fullRankStepCount: 25 } },
  },
  {
    name: 'growingCycles',
    label: 'ReLoRA, growing cycles',
    kind: 'relora',
    scales: [8, 16, 32],
    note: 'each twice the one before',
    settings: { cycleStepCount: 134, adapter: { cycleGrowth: 2 } },
  },
  {
    // LoRA+ (arXiv 2402.12354).
    name: 'fasterB',
    label: 'ReLoRA, B faster than A',
    kind: 'relora',
    scales: [4, 8, 16],
    note: 'four times the rate for B',
    settings: { adapter: { bLearningRateRatio: 4 } },
  },
  {
    name: 'reloraQuarter',
    label: 'ReLoRA of rank 32',
    kind: 'relora',
    scales: [2, 4, 8],
    settings: quarter,
  },
  { name: 'loraQuarter', label: 'LoRA of rank 32', kind: 'lora', scales: [1, 2, 4], settings: quarter },
  {
    name: 'reloraQuarterWarm',
    label: 'ReLoRA of rank 32, warm start',
    kind: 'relora',
    scales: [4, 8, 16],
    settings: { ...quarter, ...warmStart },
  },
  {
    name: 'gradientStartBQuarter',
    label: 'gradient-SVD start of rank 32, B alone',
    kind: 'relora',
    scales: [1, 2, 4],
    settings: { ...quarter, ...gradientStartB },
  },
  {
    // Flora (arXiv 2402.03293): a random projection of the gradient, redrawn in each cycle.
    name: 'frozenAQuarter',
    label: 'frozen random A of rank 32',
    kind: 'relora',
    scales: [2, 4, 8],
    settings: {
      ...quarter,
      ...gradientStartB,
      adapter: { ...gradientStartB.adapter, initialisation: 'random' },
    },
  },
];

/** The specification of one run: a mode with a learning rate, a scale of its adapters and a seed; everything else comes from the plan. */
export function specOf(plan, mode, { rate, scale, seed }) {
  const { kind } = mode;
  const isFullRank = kind === 'fullRank';
  const { adapter = {}, ...settings } = mode.settings ?? {};
  const { stepCount, warmupStepCount, ...own } = { ...plan, ...settings };
  const warmStartStepCount = isFullRank ? 0 : own.warmStartStepCount;
  const mainStepCount = stepCount - warmStartStepCount;
  const isLora = kind === 'lora';
  return defaultRunSpec({
    kind,
    model: { ...(plan.shape ?? presets[plan.preset]), vocabSize: plan.vocabSize },
    dataset: 'datasets/convergence',
    warmStart: { stepCount: warmStartStepCount, learningRate: rate, warmupStepCount },
    adapter: isFullRank
      ? null
      : {
          rank: own.rank,
          alpha: scale * own.rank,
          cycleStepCount: isLora ? mainStepCount : own.cycleStepCount,
          restartWarmupStepCount: isLora ? 0 : own.restartWarmupStepCount,
          ...adapter,
        },
    stepCount: mainStepCount,
    learningRate: { peak: rate, schedule: 'jaggedCosine', warmupStepCount },
    optimizer: { beta2: 0.99 },
    batch: own.batch,
    precision: own.precision,
    seed,
    // The same text each time: if the last evaluation used different text, the curve would have a kink.
    evaluation: {
      everyStepCount: Math.ceil(stepCount / own.evaluationCount),
      tokenCount: own.heldOutTokenCount,
      finalTokenCount: own.heldOutTokenCount,
    },
    checkpoint: { everyStepCount: 0, keepCount: 1 },
    device: 'native',
  });
}
