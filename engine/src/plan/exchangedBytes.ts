import { layerMethod } from './layerMethod.js';
import { headSize, linearShapes } from './parameters.js';
import { targetModules, type Phase, type ReductionType, type RunSpec } from './runSpec.js';

/** Gradients are stored one after another, each aligned to a cache line. */
const floatsPerLine = 16;

/** Bytes per exchanged value. */
export const reductionBytes: Readonly<Record<ReductionType, number>> = { float32: 4, bfloat16: 2 };

type Exchanging = Pick<RunSpec, 'model' | 'adapter' | 'reductionType' | 'synchronization'>;

/**
 * Bytes that each process sends to the others per step: the gradients of what the step trains. With adapters these are A, B, embedding,
 * norms, biases and head, otherwise all weights. If there is one exchange per cycle, its bytes are divided by the cycle's steps.
 */
export function exchangedBytes(spec: Exchanging, phase: Phase): number {
  const { model, adapter } = spec;
  if (phase === 'adapter' && adapter !== null && spec.synchronization === 'everyCycle')
    return Math.ceil(cycleMeanBytes(spec) / adapter.cycleStepCount);
  const shapes = linearShapes(model);
  const lengths = sharedInBlock(model);
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
  return reductionBytes[spec.reductionType] * modelFloats(model, lengths, padded);
}

/**
 * Bytes that each process sends to the others at the end of a cycle that it trained by itself: adapted weights, and shared weights with
 * their moments.
 */
export function cycleMeanBytes({ model, adapter }: Pick<RunSpec, 'model' | 'adapter'>): number {
  const shapes = linearShapes(model);
  const adapted = adapter?.targetModules ?? [];
  const weights = adapted.reduce(
    (sum, module) => sum + shapes[module].inFeatures * shapes[module].outFeatures,
    0,
  );
  const scaleMoments = adapter?.trainableScale ? 2 * adapted.length : 0;
  const withMoments = 3 * modelFloats(model, sharedInBlock(model), (length) => length);
  return 4 * (withMoments + model.numHiddenLayers * (weights + scaleMoments));
}

/** Lengths of the norms and biases of a block. */
function sharedInBlock(model: RunSpec['model']): number[] {
  const { hiddenSize, qkNorm, attentionBias } = model;
  const shapes = linearShapes(model);
  return [
    ...[hiddenSize, hiddenSize],
    ...(qkNorm ? [headSize(model), headSize(model)] : []),
    ...(attentionBias
      ? (['q_proj', 'k_proj', 'v_proj'] as const).map((module) => shapes[module].outFeatures)
      : []),
  ];
}

/** Sum of `sizeOf` over the given lengths of each block, embedding, last norm and head. */
function modelFloats(
  { hiddenSize, vocabSize, numHiddenLayers, tieWordEmbeddings }: RunSpec['model'],
  inBlock: readonly number[],
  sizeOf: (length: number) => number,
): number {
  const block = inBlock.reduce((sum, length) => sum + sizeOf(length), 0);
  const embeddings = sizeOf(vocabSize * hiddenSize) * (tieWordEmbeddings ? 1 : 2);
  return numHiddenLayers * block + embeddings + sizeOf(hiddenSize);
}

function padded(length: number): number {
  return Math.ceil(length / floatsPerLine) * floatsPerLine;
}
