import type * as tables from './jobSettings.js';
import type { ValuesOf } from './setting.js';
import type { MixturePart, OmittedDocument } from './mixture.js';
import type { DeviceChoice, ExportFormat, GgufType, TargetModule } from './words.js';

export * from './words.js';

/**
 * What a run trains: a JobSpec with every default filled in and every reference resolved. Plain data, stored as JSON with the job. The
 * fields that are not here come from the tables of jobSettings.ts.
 */
export interface RunSpec extends ValuesOf<typeof tables.runSettings> {
  model: LlamaConfig;
  /** Folder with Hugging Face weights to start from, as of when the job was created; null for new weights. */
  baseWeightsFolder: string | null;
  /** Resource name of that folder, `weights/{id}` or `jobs/{id}/artifacts/{id}`; null if its path was given. */
  baseWeightsName: string | null;
  /** How base weights enter the hash of the specification: by the path of their folder, as in 0.1.0, or by their content. */
  baseWeightsHash: 'path' | 'content';
  /** Resource name of the data set, `datasets/{id}`; for a mixture the first one, whose tokenizer all of them share. */
  dataset: string;
  /** The data sets of a mixture, at least two; empty if `dataset` is the only one. */
  mixture: MixturePart[];
  warmStart: WarmStartSettings;
  /** Null for fullRank. */
  adapter: AdapterSettings | null;
  /** Steps of the main phase, after the warm start. */
  stepCount: number;
  /** Ranges of steps, over all phases, whose batch is not trained on; sorted and disjoint. */
  omittedSteps: StepRange[];
  /** Documents that are not trained on, in any order. */
  omittedDocuments: OmittedDocument[];
  streams: StreamVersions;
  /** Other devices that it may run on; `device` is preferred. */
  acceptedDevices: Exclude<DeviceChoice, 'auto'>[];
  /** Name of the recipe whose defaults it was created with; informational only. */
  recipe: string;
  learningRate: LearningRateSettings;
  optimizer: OptimizerSettings;
  batch: BatchSettings;
  evaluation: ValuesOf<typeof tables.evaluationSettings>;
  /** Evaluations in addition to the one on its held-out part. */
  evaluations: NamedEvaluationSettings[];
  checkpoint: ValuesOf<typeof tables.checkpointSettings>;
  stop: ValuesOf<typeof tables.stopSettings>;
  sample: ValuesOf<typeof tables.sampleSettings>;
  export: ExportSettings;
}

/** Either a data set or questions, under a name that is unique within the run. */
export interface NamedEvaluationSettings extends ValuesOf<typeof tables.namedEvaluationSettings> {
  name: string;
  /** Resource name of the data set whose held-out part is evaluated; empty if it has questions. */
  dataset: string;
  /** JSON lines (choiceQuestions.ts); empty if it has a data set. */
  questions: string;
}

export interface StepRange {
  first: number;
  /** Inclusive. */
  last: number;
}

export interface ExportSettings extends ValuesOf<typeof tables.exportSettings> {
  formats: ExportFormat[];
  /** Type of the weights in a GGUF file. */
  ggufType: GgufType;
}

export interface LlamaConfig extends ValuesOf<typeof tables.modelSettings> {
  /** How rotary embedding is scaled for longer sequences, as in Llama 3.1; null: not at all. */
  ropeScaling: RopeScaling | null;
}

/** Hugging Face's `rope_scaling` of rope_type "llama3". */
export interface RopeScaling {
  /** Long wavelengths are stretched by this factor. */
  factor: number;
  /** Wavelengths above originalMaxPositionEmbeddings / lowFrequencyFactor are long. */
  lowFrequencyFactor: number;
  /** Wavelengths below originalMaxPositionEmbeddings / highFrequencyFactor are short and unchanged. */
  highFrequencyFactor: number;
  originalMaxPositionEmbeddings: number;
}

export interface AdapterSettings extends ValuesOf<typeof tables.adapterSettings> {
  targetModules: TargetModule[];
  /** Ranks of individual modules; the others use `rank`. */
  moduleRanks: Partial<Record<TargetModule, number>>;
}

export type StreamVersions = ValuesOf<typeof tables.streamSettings>;
export type WarmStartSettings = ValuesOf<typeof tables.warmStartSettings>;
export type LearningRateSettings = ValuesOf<typeof tables.learningRateSettings>;
export type OptimizerSettings = ValuesOf<typeof tables.optimizerSettings>;
export type BatchSettings = ValuesOf<typeof tables.batchSettings>;
