import type { ModelFiles } from '../model/modelFiles.js';
import { layerMethod } from '../plan/layerMethod.js';
import type { AdapterSettings, LlamaConfig, TargetModule } from '../plan/runSpec.js';

/** One layer's adapter, y = x W + scale (x A) B. */
export interface AdapterFactors {
  rank: number;
  /** [in, rank] */
  a: Float32Array;
  /** [rank, out] */
  b: Float32Array;
  scale: number;
}

/** Origin of exported weights, for the manifest. */
export interface Lineage {
  /** Resource name of the job; null if there is none. */
  job: string | null;
  specSha256: string;
  datasetSha256: string;
  /** Steps taken. */
  step: number;
  /** Number of the present adapters' cycle, from 1; null while the model has no adapters. */
  cycle: number | null;
  restartCount: number;
  trainedTokens: number;
}

/**
 * A model to export, one tensor at a time: the current state of a run, or a checkpoint on disk. Names are those of Hugging Face's files;
 * linear weights have our layout, [in, out].
 */
export interface WeightSource {
  readonly config: LlamaConfig;
  /** Null while the model has no adapters. */
  readonly adapter: AdapterSettings | null;
  readonly lineage: Omit<Lineage, 'job'>;
  readonly tokenizerJson: string;
  readonly endOfTextId: number;
  /** Files of the model that the run started from. */
  readonly modelFiles: ModelFiles;
  /** A weight without its adapter. */
  weight(name: string): Promise<Float32Array>;
  /** W + scale A B of a linear weight; throws MergeNotFinite. */
  merged(name: string): Promise<Float32Array>;
  /** The adapter of a layer, by its name without `.weight`; null if it has none. */
  factors(layer: string): Promise<AdapterFactors | null>;
}

/** The constant scale of a layer's adapter, or the current value of a trainable one: tanh(g). */
export function scaleOf(settings: AdapterSettings, layer: string, g: number | null): number {
  return g === null ? layerMethod(settings, moduleOf(layer)).scale : Math.tanh(g);
}

/** Module of a layer `model.layers.0.self_attn.q_proj`. */
export function moduleOf(layer: string): TargetModule {
  return layer.slice(layer.lastIndexOf('.') + 1) as TargetModule;
}
