import { layerMethod } from './layerMethod.js';
import { targetModules, type LlamaConfig, type RunSpec, type TargetModule } from './runSpec.js';

/** Features of the largest head that every device supports. */
export const headDimMax = 128;

/** Features of one head. */
export function headSize({
  headDim,
  hiddenSize,
  numAttentionHeads,
}: Pick<LlamaConfig, 'headDim' | 'hiddenSize' | 'numAttentionHeads'>): number {
  return headDim === 0 ? hiddenSize / numAttentionHeads : headDim;
}

/** Whether a layer, counted from 0, has a rotary embedding: every n-th has none. */
export function hasRope({ noRopeInterval }: Pick<LlamaConfig, 'noRopeInterval'>, layer: number): boolean {
  return noRopeInterval === 0 || (layer + 1) % noRopeInterval !== 0;
}

/** Inputs and outputs of each linear layer of one block. */
export function linearShapes(
  config: LlamaConfig,
): Record<TargetModule, { inFeatures: number; outFeatures: number }> {
  const { hiddenSize, intermediateSize } = config;
  const width = headSize(config) * config.numAttentionHeads;
  const kvSize = headSize(config) * config.numKeyValueHeads;
  return {
    q_proj: { inFeatures: hiddenSize, outFeatures: width },
    k_proj: { inFeatures: hiddenSize, outFeatures: kvSize },
    v_proj: { inFeatures: hiddenSize, outFeatures: kvSize },
    o_proj: { inFeatures: width, outFeatures: hiddenSize },
    gate_proj: { inFeatures: hiddenSize, outFeatures: intermediateSize },
    up_proj: { inFeatures: hiddenSize, outFeatures: intermediateSize },
    down_proj: { inFeatures: intermediateSize, outFeatures: hiddenSize },
  };
}

/** The largest rank that fits all given layers: the smallest side of any of them. */
export function largestRank(config: LlamaConfig, modules: readonly TargetModule[]): number {
  const shapes = linearShapes(config);
  return Math.min(
    ...modules.map((module) => Math.min(shapes[module].inFeatures, shapes[module].outFeatures)),
  );
}

/** Number of weights by their role in a job. */
export interface ParameterCounts {
  /** Linear layers of all blocks. */
  linear: number;
  /** Embedding, norms, head and biases: trained in full in every phase. */
  shared: number;
  /** A, B and trainable scales of all blocks; 0 for fullRank. */
  adapter: number;
  /** linear + shared: the model itself. */
  model: number;
  /** What steps with adapters train; for fullRank all weights. */
  trainable: number;
}

export function countParameters(spec: Pick<RunSpec, 'model' | 'kind' | 'adapter'>): ParameterCounts {
  const { model, adapter } = spec;
  const shapes = linearShapes(model);
  const embeddings = model.vocabSize * model.hiddenSize * (model.tieWordEmbeddings ? 1 : 2);
  const biases = model.attentionBias
    ? shapes.q_proj.outFeatures + shapes.k_proj.outFeatures + shapes.v_proj.outFeatures
    : 0;
  const headNorms = model.qkNorm ? 2 * headSize(model) : 0;
  const shared =
    embeddings +
    (2 * model.numHiddenLayers + 1) * model.hiddenSize +
    model.numHiddenLayers * (biases + headNorms);
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
