import type * as tables from './jobSettings.js';
import type { ValuesOf } from './setting.js';
import type { MixturePart, OmittedDocument } from './mixture.js';
import type { DeviceChoice, ExportFormat, GgufType, TargetModule } from './words.js';

export * from './words.js';

/**
 * What a run trains: a JobSpec with every default filled in and every reference resolved. Plain data, stored as JSON with the
 * job. What is not here is described by the tables of jobSettings.ts, field by field.
 */
export interface RunSpec extends ValuesOf<typeof tables.runSettings> {
  model: LlamaConfig;
  /** Folder with Hugging Face weights to continue from, where it was when the job was created; null for new weights. */
  baseWeightsFolder: string | null;
  /** What the folder was named by, `weights/{id}` or `jobs/{id}/artifacts/{id}`; null where its path was given. */
  baseWeightsName: string | null;
  /** How base weights stand in the hash of the specification: by the path of their folder, as in 0.1.0, or by what is in it. */
  baseWeightsHash: 'path' | 'content';
  /** Resource name of the data set, `datasets/{id}`; of a mixture the first, whose tokenizer all have. */
  dataset: string;
  /** The data sets of a mixture, at least two; empty where `dataset` is all. */
  mixture: MixturePart[];
  warmStart: WarmStartSettings;
  /** Null for fullRank. */
  adapter: AdapterSettings | null;
  /** Steps of the main phase, after the warm start. */
  stepCount: number;
  /** Ranges of steps, over all phases, whose batch is passed over without an update; in order and apart. */
  omittedSteps: StepRange[];
  /** Documents that are passed over, in no order. */
  omittedDocuments: OmittedDocument[];
  streams: StreamVersions;
  /** Devices that it may run on beside `device`, which goes before them. */
  acceptedDevices: Exclude<DeviceChoice, 'auto'>[];
  /** Name of the defaults that it was made with; it decides nothing any more. */
  recipe: string;
  learningRate: LearningRateSettings;
  optimizer: OptimizerSettings;
  batch: BatchSettings;
  evaluation: ValuesOf<typeof tables.evaluationSettings>;
  /** What it is scored on beside its held-out part. */
  evaluations: NamedEvaluationSettings[];
  checkpoint: ValuesOf<typeof tables.checkpointSettings>;
  stop: ValuesOf<typeof tables.stopSettings>;
  sample: ValuesOf<typeof tables.sampleSettings>;
  export: ExportSettings;
}

/** Either a data set or questions, under a name of its own within the run. */
export interface NamedEvaluationSettings extends ValuesOf<typeof tables.namedEvaluationSettings> {
  name: string;
  /** Resource name of the data set whose held-out part counts; empty where it has questions. */
  dataset: string;
  /** JSON lines (choiceQuestions.ts); empty where it has a data set. */
  questions: string;
}

export interface StepRange {
  first: number;
  /** The range has it too. */
  last: number;
}

export interface ExportSettings extends ValuesOf<typeof tables.exportSettings> {
  formats: ExportFormat[];
  /** Type of the weights in GGUF. */
  ggufType: GgufType;
}

export interface LlamaConfig extends ValuesOf<typeof tables.modelSettings> {
  /** How the rotary embedding was stretched for longer sequences, as Llama 3.1 does it; null for not at all. */
  ropeScaling: RopeScaling | null;
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

export interface AdapterSettings extends ValuesOf<typeof tables.adapterSettings> {
  targetModules: TargetModule[];
  /** Ranks of single modules; the others take `rank`. */
  moduleRanks: Partial<Record<TargetModule, number>>;
}

export type StreamVersions = ValuesOf<typeof tables.streamSettings>;
export type WarmStartSettings = ValuesOf<typeof tables.warmStartSettings>;
export type LearningRateSettings = ValuesOf<typeof tables.learningRateSettings>;
export type OptimizerSettings = ValuesOf<typeof tables.optimizerSettings>;
export type BatchSettings = ValuesOf<typeof tables.batchSettings>;
