/** What a run trains: a JobSpec with every default filled in and every reference resolved. Plain data, stored as JSON with the job. */
export interface RunSpec {
  kind: 'relora' | 'lora' | 'fullRank';
  model: LlamaConfig;
  /** Folder with Hugging Face weights to continue from; null for new weights. */
  baseWeightsFolder: string | null;
  /** What the folder was named by, `weights/{id}` or `jobs/{id}/artifacts/{id}`; null where its path was given. */
  baseWeightsName: string | null;
  /** Resource name of the data set, `datasets/{id}`. */
  dataset: string;
  warmStart: WarmStartSettings;
  /** Null for fullRank. */
  adapter: AdapterSettings | null;
  /** Steps of the main phase, after the warm start. */
  stepCount: number;
  /** Ranges of steps, over all phases, whose batch is passed over without an update; in order and apart. */
  omittedSteps: StepRange[];
  /** Name of the defaults that it was made with; it decides nothing any more. */
  recipe: string;
  learningRate: LearningRateSettings;
  optimizer: OptimizerSettings;
  batch: BatchSettings;
  precision: Precision;
  recomputation: Recomputation;
  endOfData: EndOfData;
  seed: number;
  evaluation: {
    everyStepCount: number;
    tokenCount: number;
    /** 0: the whole held-out part. */ finalTokenCount: number;
  };
  checkpoint: { everyStepCount: number; keepCount: number };
  sample: { everyStepCount: number; prompt: string; tokenCount: number };
  export: ExportSettings;
  priority: number;
  device: DeviceChoice;
}

export interface StepRange {
  first: number;
  /** The range has it too. */
  last: number;
}

/** `int8Base` and `nf4Base` name how the frozen base is kept; what is trained is then computed as with `auto`. */
export type Precision = 'auto' | 'float32' | 'bfloat16' | 'int8Base' | 'nf4Base';
/** What of the forward pass is computed again in the backward pass. `auto`: `blocks` when the estimate needs it. */
export type Recomputation = 'auto' | 'none' | 'blocks';
/** What comes after one pass over the training part: `stop` refuses a run that would need more. */
export type EndOfData = 'repeat' | 'stop';
export const weightTypes = ['float32', 'float16', 'bfloat16'] as const;
export type WeightType = (typeof weightTypes)[number];
/** `q8_0`: blocks of 32 int8 with a scale, which GGUF alone knows. */
export const ggufTypes = [...weightTypes, 'q8_0'] as const;
export type GgufType = (typeof ggufTypes)[number];
export const exportFormats = ['huggingFace', 'peft', 'gguf'] as const;
export type ExportFormat = (typeof exportFormats)[number];

/** What is exported at the end of a run. */
export interface ExportSettings {
  weightType: WeightType;
  formats: ExportFormat[];
  /** Largest file of weights in Hugging Face layout. */
  shardBytesMax: number;
  /** Type of the weights in GGUF. */
  ggufType: GgufType;
}

/** As large as Hugging Face long made its own. */
export const shardBytesDefault = 5_000_000_000;
export type DeviceChoice = 'auto' | 'native' | 'tensorflow' | 'reference';

/** Shape of a Llama model, in the terms of Hugging Face's config.json. */
export interface LlamaConfig {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numHiddenLayers: number;
  numAttentionHeads: number;
  numKeyValueHeads: number;
  maxPositionEmbeddings: number;
  ropeTheta: number;
  rmsNormEps: number;
  tieWordEmbeddings: boolean;
  /** How the rotary embedding was stretched for longer sequences, as Llama 3.1 does it; null for not at all. */
  ropeScaling: RopeScaling | null;
  /** A bias on the query, key and value projections, as in Qwen2. */
  attentionBias: boolean;
}

/** Hugging Face's `rope_scaling` of rope_type "llama3". */
export interface RopeScaling {
  /** Long wavelengths are stretched by this. */
  factor: number;
  /** Wavelengths above originalMaxPositionEmbeddings / lowFrequencyFactor are long. */
  lowFrequencyFactor: number;
  /** Wavelengths below originalMaxPositionEmbeddings / highFrequencyFactor are short, and stay as they are. */
  highFrequencyFactor: number;
  originalMaxPositionEmbeddings: number;
}

export interface WarmStartSettings {
  stepCount: number;
  learningRate: number;
  warmupStepCount: number;
}

export interface AdapterSettings {
  rank: number;
  alpha: number;
  dropout: number;
  /** Steps between restarts; for `lora` equal to stepCount. */
  cycleStepCount: number;
  restartWarmupStepCount: number;
  momentReset: MomentReset;
  momentPruneRatio: number;
  targetModules: TargetModule[];
  trainableScale: boolean;
  graph: AdapterGraph;
  initialisation: Initialisation;
  trainedFactors: TrainedFactors;
  /** Each cycle is so many times as long as the one before; 1: all alike. */
  cycleGrowth: number;
  /** Full-rank steps between a merge and the adapters of the next cycle; part of its length. */
  fullRankStepCount: number;
  /** Ranks of single modules; the others take `rank`. */
  moduleRanks: Partial<Record<TargetModule, number>>;
  scaling: Scaling;
  /** Learning rate of B over that of A (LoRA+). */
  bLearningRateRatio: number;
}

/** Where A begins in each cycle: drawn, or the leading directions of the weight's gradient (docs/relora.md). */
export type Initialisation = 'random' | 'gradientSvd';

/** `bOnly`: A stays as it begins its cycle. */
export type TrainedFactors = 'both' | 'bOnly';

/** s of y = x W + s (x A) B. */
export type Scaling = 'alphaOverRank' | 'alphaOverSqrtRank';

/** How an adapted layer is computed (docs/performance.md). `auto`: the planner chooses; bits depend on the choice. */
export type AdapterGraph = 'auto' | 'separate' | 'merged' | 'weightGradient';

export type MomentReset = 'zero' | 'random' | 'magnitude';

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

export interface LearningRateSettings {
  peak: number;
  schedule: ScheduleKind;
  warmupStepCount: number;
  minRatio: number;
}

export type ScheduleKind = 'jaggedCosine' | 'cosine' | 'linear' | 'constant';

export interface OptimizerSettings {
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  gradientNormMax: number;
  nonfiniteStepCountMax: number;
  momentType: MomentType;
}

export type MomentType = 'float32' | 'int8';

export interface BatchSettings {
  sequenceLength: number;
  sequenceCount: number;
  microBatchSequenceCount: number;
}

export const phases = ['warmStart', 'adapter', 'fullRank'] as const;
export type Phase = (typeof phases)[number];
