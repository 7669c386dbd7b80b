/** What settings and events choose from. In capitals they are the names of the contract's enums: `int8Base` is INT8_BASE. */
export const jobKinds = ['relora', 'lora', 'fullRank'] as const;

/** `int8Base`, `nf4Base` and `fp8Base` name how the frozen base is kept; what is trained is then computed as with `auto`. */
export const precisions = ['auto', 'float32', 'bfloat16', 'int8Base', 'nf4Base', 'fp8Base'] as const;
export type Precision = (typeof precisions)[number];

/** What of the forward pass is computed again in the backward pass. `auto`: `blocks` when the estimate needs it. */
export const recomputations = ['auto', 'none', 'blocks'] as const;
export type Recomputation = (typeof recomputations)[number];

/** What comes after one pass over the training part: `stop` refuses a run that would need more. */
export const endsOfData = ['repeat', 'stop'] as const;
export type EndOfData = (typeof endsOfData)[number];

export const deviceChoices = ['auto', 'native', 'cuda', 'tensorflow', 'reference'] as const;
export type DeviceChoice = (typeof deviceChoices)[number];

export const momentTypes = ['float32', 'int8'] as const;
export type MomentType = (typeof momentTypes)[number];

/** What the gradients of a job's processes travel as. */
export const reductionTypes = ['float32', 'bfloat16'] as const;
export type ReductionType = (typeof reductionTypes)[number];

/** How often processes agree on their weights: gradients of each step, or what each learned in a cycle. */
export const synchronizations = ['everyStep', 'everyCycle'] as const;
export type Synchronization = (typeof synchronizations)[number];

/** `carry`: that of B goes into the span of the new A, that of A is forgotten. */
export const momentResets = ['zero', 'random', 'magnitude', 'carry'] as const;
export type MomentReset = (typeof momentResets)[number];

/** How an adapted layer is computed (adapterGraphs.ts). */
export const layerGraphs = ['separate', 'merged', 'weightGradient'] as const;
export type LayerGraph = (typeof layerGraphs)[number];

/** `auto`: the planner chooses (docs/performance.md); bits depend on the choice. */
export const adapterGraphs = ['auto', ...layerGraphs] as const;
export type AdapterGraph = (typeof adapterGraphs)[number];

/** What trains the linear layers in full-rank steps; embedding, head, norms and biases are always AdamW's (docs/relora.md). */
export const fullRankOptimizers = ['adamw', 'muon', 'apolloMini'] as const;
export type FullRankOptimizer = (typeof fullRankOptimizers)[number];

export const adapterOptimizers = ['adamw', 'loraMuon'] as const;
export type AdapterOptimizer = (typeof adapterOptimizers)[number];

/**
 * Where A begins in each cycle: drawn, the leading directions of the weight's gradient, or after a restart what the last A spanned, or the
 * half of it that the last cycle used most beside as many that are drawn (docs/relora.md).
 */
export const initialisations = ['random', 'gradientSvd', 'oldSpan', 'halfSpan'] as const;
export type Initialisation = (typeof initialisations)[number];

/** `bOnly`: A stays as it begins its cycle. */
export const trainedFactorChoices = ['both', 'bOnly'] as const;
export type TrainedFactors = (typeof trainedFactorChoices)[number];

/** s of y = x W + s (x A) B. */
export const adapterScalings = ['alphaOverRank', 'alphaOverSqrtRank'] as const;
export type Scaling = (typeof adapterScalings)[number];

export const scheduleKinds = ['jaggedCosine', 'cosine', 'linear', 'constant'] as const;
export type ScheduleKind = (typeof scheduleKinds)[number];

export const weightTypes = ['float32', 'float16', 'bfloat16'] as const;
export type WeightType = (typeof weightTypes)[number];

/** `q8_0`: blocks of 32 int8 with a scale, which GGUF alone knows. */
export const ggufTypes = [...weightTypes, 'q8_0'] as const;
export type GgufType = (typeof ggufTypes)[number];

export const exportFormats = ['huggingFace', 'peft', 'gguf'] as const;
export type ExportFormat = (typeof exportFormats)[number];

/** Which weights of a run: those of its end, or those of the lowest held-out loss. */
export const weightChoices = ['last', 'best'] as const;
export type WeightChoice = (typeof weightChoices)[number];

/** Why a run ended before its last step; by the names of the settings. */
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
