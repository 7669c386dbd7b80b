/** Values of settings and events. In capitals they are the names of the contract's enums: `int8Base` is INT8_BASE. */
export const jobKinds = ['relora', 'lora', 'fullRank'] as const;

/** `int8Base`, `nf4Base` and `fp8Base` say how the frozen base is stored; trained weights then have the precision of `auto`. */
export const precisions = ['auto', 'float32', 'bfloat16', 'int8Base', 'nf4Base', 'fp8Base'] as const;
export type Precision = (typeof precisions)[number];

/** Arithmetic of the head's logits and of their gradient with respect to hidden states, in training steps. `same`: as trained weights. */
export const headPrecisions = ['same', 'int8'] as const;
export type HeadPrecision = (typeof headPrecisions)[number];

/** Which parts of the forward pass are recomputed in the backward pass. `auto`: `blocks` if the memory estimate requires it. */
export const recomputations = ['auto', 'none', 'blocks'] as const;
export type Recomputation = (typeof recomputations)[number];

/** What happens after one pass over the training part: `stop` refuses a run that would need more data. */
export const endsOfData = ['repeat', 'stop'] as const;
export type EndOfData = (typeof endsOfData)[number];

export const deviceChoices = ['auto', 'native', 'cuda', 'tensorflow', 'reference'] as const;
export type DeviceChoice = (typeof deviceChoices)[number];

export const momentTypes = ['float32', 'int8'] as const;
export type MomentType = (typeof momentTypes)[number];

/** Types in which processes of a job exchange gradients. */
export const reductionTypes = ['float32', 'bfloat16'] as const;
export type ReductionType = (typeof reductionTypes)[number];

/** What processes agree on: the gradients of each step, or what each of them learned in a cycle. */
export const synchronizations = ['everyStep', 'everyCycle'] as const;
export type Synchronization = (typeof synchronizations)[number];

/** `carry`: the moments of B are converted to the span of the new A, those of A are reset. */
export const momentResets = ['zero', 'random', 'magnitude', 'carry'] as const;
export type MomentReset = (typeof momentResets)[number];

/** How an adapted layer is computed (adapterGraphs.ts). */
export const layerGraphs = ['separate', 'merged', 'weightGradient'] as const;
export type LayerGraph = (typeof layerGraphs)[number];

/** `auto`: the planner chooses (docs/performance.md); bits depend on the choice. */
export const adapterGraphs = ['auto', ...layerGraphs] as const;
export type AdapterGraph = (typeof adapterGraphs)[number];

/** Optimizers of linear layers in full-rank steps; embedding, head, norms and biases always use AdamW (docs/relora.md). */
export const fullRankOptimizers = ['adamw', 'muon', 'apolloMini'] as const;
export type FullRankOptimizer = (typeof fullRankOptimizers)[number];

export const adapterOptimizers = ['adamw', 'loraMuon'] as const;
export type AdapterOptimizer = (typeof adapterOptimizers)[number];

/**
 * Initial A of each cycle: random, the leading directions of the weight's gradient, or (after a restart) the span of the last A, or the
 * half of that span that the last cycle used most plus as many random directions (docs/relora.md).
 */
export const initialisations = ['random', 'gradientSvd', 'oldSpan', 'halfSpan'] as const;
export type Initialisation = (typeof initialisations)[number];

/** `bOnly`: A keeps its initial value throughout the cycle. */
export const trainedFactorChoices = ['both', 'bOnly'] as const;
export type TrainedFactors = (typeof trainedFactorChoices)[number];

/** s of y = x W + s (x A) B. */
export const adapterScalings = ['alphaOverRank', 'alphaOverSqrtRank'] as const;
export type Scaling = (typeof adapterScalings)[number];

export const scheduleKinds = ['jaggedCosine', 'cosine', 'linear', 'constant'] as const;
export type ScheduleKind = (typeof scheduleKinds)[number];

export const weightTypes = ['float32', 'float16', 'bfloat16'] as const;
export type WeightType = (typeof weightTypes)[number];

/** `q8_0`: blocks of 32 int8 values with a scale; GGUF only. */
export const ggufTypes = [...weightTypes, 'q8_0'] as const;
export type GgufType = (typeof ggufTypes)[number];

export const exportFormats = ['huggingFace', 'peft', 'gguf'] as const;
export type ExportFormat = (typeof exportFormats)[number];

/** Which weights of a run: the final ones, or those of the lowest held-out loss. */
export const weightChoices = ['last', 'best'] as const;
export type WeightChoice = (typeof weightChoices)[number];

/** Why a run ended before its last step; named like the settings. */
export const stopReasons = [
  'patience',
  'evaluationLoss',
  'tokenCount',
  'seconds',
  'deviceHours',
  'requested',
] as const;
export type StopReason = (typeof stopReasons)[number];

/** Linear layers of a block, with Hugging Face's names. */
export const targetModules = [
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
] as const;
export type TargetModule = (typeof targetModules)[number];

export const phases = ['warmStart', 'adapter', 'fullRank'] as const;
export type Phase = (typeof phases)[number];
