import type { LlamaConfig } from './runSpec.js';

/** A model shape without its vocabulary size, which comes from the data set's tokenizer. */
export type PresetShape = Omit<LlamaConfig, 'vocabSize'>;

function llama(
  hiddenSize: number,
  intermediateSize: number,
  numHiddenLayers: number,
  numAttentionHeads: number,
  maxPositionEmbeddings = 1024,
): PresetShape {
  return {
    hiddenSize,
    intermediateSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    maxPositionEmbeddings,
    ropeTheta: 10_000,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: false,
    ropeScaling: null,
    attentionBias: false,
    headDim: 0,
    qkNorm: false,
    noRopeInterval: 0,
  };
}

/** The models of the ReLoRA paper (arXiv 2307.05695), and `demo`, which learns English in minutes on two CPU cores. */
export const presets: Readonly<Record<string, PresetShape>> = {
  demo: llama(192, 512, 4, 6, 512),
  'llama-9m': llama(128, 352, 4, 4),
  'llama-20m': llama(256, 688, 4, 4),
  'llama-35m': llama(384, 1024, 6, 8),
  'llama-60m': llama(512, 1376, 8, 8),
  'llama-71m': llama(512, 1368, 12, 8),
  'llama-130m': llama(768, 2048, 12, 12),
  'llama-250m': llama(768, 2560, 24, 16),
  'llama-350m': llama(1024, 2736, 24, 16),
  'llama-1b': llama(2048, 5461, 24, 32),
  'llama-3b': llama(2560, 6848, 32, 32),
  'llama-7b': llama(4096, 11008, 32, 32, 2048),
};
