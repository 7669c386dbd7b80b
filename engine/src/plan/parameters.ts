import { layerMethod } from './layerMethod.js';
import { targetModules, type LlamaConfig, type RunSpec, type TargetModule } from './runSpec.js';

/** Inputs and outputs of each linear layer of one block. */
export function linearShapes(
  config: LlamaConfig,
): Record<TargetModule, { inFeatures: number; outFeatures: number }> {
  const { hiddenSize, intermediateSize } = config;
  const kvSize = (hiddenSize / config.numAttentionHeads) * config.numKeyValueHeads;
  return {
    q_proj: { inFeatures: hiddenSize, outFeatures: hiddenSize },
    k_proj: { inFeatures: hiddenSize, outFeatures: kvSize },
    v_proj: { inFeatures: hiddenSize, outFeatures: kvSize },
    o_proj: { inFeatures: hiddenSize, outFeatures: hiddenSize },
    gate_proj: { inFeatures: hiddenSize, outFeatures: intermediateSize },
    up_proj: { inFeatures: hiddenSize, outFeatures: intermediateSize },
    down_proj: { inFeatures: intermediateSize, outFeatures: hiddenSize },
  };
}

/** The largest rank that every given layer can hold: the smaller side of the smallest of them. */
export function largestRank(config: LlamaConfig, modules: readonly TargetModule[]): number {
  const shapes = linearShapes(config);
  return Math.min(
    ...modules.map((module) => Math.min(shapes[module].inFeatures, shapes[module].outFeatures)),
  );
}

/** Number of weights by the role they play in a job. */
export interface ParameterCounts {
  /** Linear layers of all blocks. */
  linear: number;
  /** Embedding, norms and head: trained in full in every phase. */
  shared: number;
  /** A, B and trainable scales of all blocks; 0 for fullRank. */
  adapter: number;
  /** linear + shared: the model itself. */
  model: number;
  /** What steps with adapters train; for fullRank all. */
  trainable: number;
}

export function countParameters(spec: Pick<RunSpec, 'model' | 'kind' | 'adapter'>): ParameterCounts {
  const { model, adapter } = spec;
  const shapes = linearShapes(model);
  const embeddings = model.vocabSize * model.hiddenSize * (model.tieWordEmbeddings ? 1 : 2);
  const shared = embeddings + (2 * model.numHiddenLayers + 1) * model.hiddenSize;
  const perBlock = targetModules.reduce(
    (sum, name) => sum + shapes[name].inFeatures * shapes[name].outFeatures,
    0,
  );
  const linear = perBlock * model.numHiddenLayers;

  let adapterCount = 0;
  let frozenCount = 0;
  for (const name of adapter?.targetModules ?? []) {
    const { inFeatures, outFeatures } = shapes[name];
    const { rank, trainsA } = layerMethod(adapter!, name);
    adapterCount += rank * (inFeatures + outFeatures) + (adapter!.trainableScale ? 1 : 0);
    if (!trainsA) frozenCount += rank * inFeatures;
  }
  adapterCount *= model.numHiddenLayers;
  frozenCount *= model.numHiddenLayers;
  const trainable = (spec.kind === 'fullRank' ? linear : adapterCount - frozenCount) + shared;
  return { linear, shared, adapter: adapterCount, model: linear + shared, trainable };
}
