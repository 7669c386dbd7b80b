import type { LlamaConfig } from './runSpec.js';

/**
 * A model class of Hugging Face, described by how it differs from a Llama. To add one, add a row here and a model in
 * test/fixtures/transformers/make.py; a feature that no row has yet also needs its own setting (jobSettings.ts) and kernels.
 */
export interface Architecture {
  /** Class name in config.json. */
  readonly className: string;
  readonly modelType: string;
  /** Queries, keys and values have a bias. */
  readonly attentionBias: boolean;
  /** Each head of queries and keys is normalized. */
  readonly headNorms: boolean;
  /** Every n-th layer may have no rotary embedding. */
  readonly skipsRope: boolean;
  /** Sliding-window attention is on unless the config says otherwise. */
  readonly hasWindow: boolean;
  /** How llama.cpp represents it. */
  readonly gguf: GgufForm;
  /** Defaults of its config class for missing keys. */
  readonly defaults: {
    readonly maxPositionEmbeddings: number;
    /** Null: as many as query heads. */
    readonly numKeyValueHeads: number | null;
    /** Null: hidden_size / num_attention_heads. */
    readonly headDim: number | null;
    readonly ropeTheta: number;
    readonly tieWordEmbeddings: boolean;
    /** 0: every layer has a rotary embedding. */
    readonly noRopeInterval: number;
  };
}

export interface GgufForm {
  readonly name: string;
  /** Whether rotation pairs neighboring features of a head instead of its halves: the export permutes these rows. */
  readonly isInterleaved: boolean;
  /** Whether it reads the scaling factors of Llama 3.1. */
  readonly readsRopeFactors: boolean;
  /** The only supported interval of layers without a rotary embedding; null: none is supported. */
  readonly noRopeInterval: number | null;
}

const defaults = {
  maxPositionEmbeddings: 2048,
  numKeyValueHeads: null,
  headDim: null,
  ropeTheta: 10_000,
  tieWordEmbeddings: false,
  noRopeInterval: 0,
};
const plain = { attentionBias: false, headNorms: false, skipsRope: false, hasWindow: false };
const halves = { isInterleaved: false, readsRopeFactors: false, noRopeInterval: null };

/** An export takes the first one that can represent the model. */
export const architectures: readonly Architecture[] = [
  {
    ...{ ...plain, className: 'LlamaForCausalLM', modelType: 'llama' },
    gguf: { name: 'llama', isInterleaved: true, readsRopeFactors: true, noRopeInterval: null },
    defaults,
  },
  {
    ...{ ...plain, className: 'MistralForCausalLM', modelType: 'mistral', hasWindow: true },
    gguf: { name: 'llama', isInterleaved: true, readsRopeFactors: true, noRopeInterval: null },
    defaults: { ...defaults, maxPositionEmbeddings: 131_072, numKeyValueHeads: 8 },
  },
  {
    ...{ ...plain, className: 'Qwen2ForCausalLM', modelType: 'qwen2', attentionBias: true },
    gguf: { ...halves, name: 'qwen2' },
    defaults: { ...defaults, maxPositionEmbeddings: 32_768, numKeyValueHeads: 32 },
  },
  {
    ...{ ...plain, className: 'Qwen3ForCausalLM', modelType: 'qwen3', headNorms: true },
    gguf: { ...halves, name: 'qwen3' },
    defaults: { ...defaults, maxPositionEmbeddings: 32_768, numKeyValueHeads: 32, headDim: 128 },
  },
  {
    ...{ ...plain, className: 'SmolLM3ForCausalLM', modelType: 'smollm3', skipsRope: true },
    gguf: { name: 'smollm3', isInterleaved: true, readsRopeFactors: false, noRopeInterval: 4 },
    defaults: {
      ...{ ...defaults, maxPositionEmbeddings: 32_768, numKeyValueHeads: 4 },
      ...{ ropeTheta: 2_000_000, tieWordEmbeddings: true, noRopeInterval: 4 },
    },
  },
];

/** Classes that users ask for but that are not supported, with the missing feature. */
export const missingArchitectures: Readonly<Record<string, string>> = {
  Gemma3ForCausalLM:
    'norms behind attention and MLP, gains of 1 + w, GELU, a scaled embedding, scores scaled by query_pre_attn_scalar, linear scaling of the rotary embedding, sliding windows with a rotary base of their own, and heads of 256',
};

/** The traits that determine a model's class. */
export type ArchitectureTraits = Pick<LlamaConfig, 'attentionBias' | 'qkNorm' | 'noRopeInterval'>;

/** The first class that can represent the model; undefined if none can. */
export function architectureOf({
  attentionBias,
  qkNorm,
  noRopeInterval,
}: ArchitectureTraits): Architecture | undefined {
  return architectures.find(
    (one) =>
      one.attentionBias === attentionBias &&
      one.headNorms === qkNorm &&
      (noRopeInterval === 0 || one.skipsRope),
  );
}
