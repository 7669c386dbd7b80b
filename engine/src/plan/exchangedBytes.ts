import { layerMethod } from './layerMethod.js';
import { headSize, linearShapes } from './parameters.js';
import { targetModules, type Phase, type RunSpec } from './runSpec.js';

/** Gradients lie one after another, each from a line of the processor's cache on. */
const floatsPerLine = 16;

/**
 * Bytes of gradients that each process of a run gives to the others in a step: in float32, of what the step trains. With adapters these
 * are A, B, embedding, norms, biases and head, else all weights.
 */
export function exchangedBytes(spec: Pick<RunSpec, 'model' | 'adapter'>, phase: Phase): number {
  const { model, adapter } = spec;
  const { hiddenSize, vocabSize, numHiddenLayers } = model;
  const shapes = linearShapes(model);
  const lengths: number[] = [];
  for (const module of targetModules) {
    const { inFeatures, outFeatures } = shapes[module];
    if (phase !== 'adapter' || adapter === null) lengths.push(inFeatures * outFeatures);
    else if (adapter.targetModules.includes(module)) {
      const { rank, trainsA } = layerMethod(adapter, module);
      if (trainsA) lengths.push(inFeatures * rank);
      lengths.push(rank * outFeatures);
      if (adapter.trainableScale) lengths.push(1);
    }
  }
  lengths.push(hiddenSize, hiddenSize);
  if (model.qkNorm) lengths.push(headSize(model), headSize(model));
  if (model.attentionBias)
    for (const module of ['q_proj', 'k_proj', 'v_proj'] as const) lengths.push(shapes[module].outFeatures);
  const perBlock = lengths.reduce((sum, length) => sum + padded(length), 0);
  const embeddings = padded(vocabSize * hiddenSize) * (model.tieWordEmbeddings ? 1 : 2);
  return 4 * (numHiddenLayers * perBlock + embeddings + padded(hiddenSize));
}

function padded(length: number): number {
  return Math.ceil(length / floatsPerLine) * floatsPerLine;
}
