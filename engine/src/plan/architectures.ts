import type { LlamaConfig } from './runSpec.js';

/**
 * A model class of Hugging Face's, by what it has beside a Llama. Adding one is a row here and a model in
 * test/fixtures/transformers/make.py; what it has that no row had yet needs a setting of its own (jobSettings.ts) and kernels.
 */
export interface Architecture {
  /** In config.json. */
  readonly className: string;
  readonly modelType: string;
  /** A bias on queries, keys and values. */
  readonly attentionBias: boolean;
  /** A norm of each head of queries and keys. */
  readonly headNorms: boolean;
  /** Whether each n-th layer may have no rotary embedding. */
  readonly skipsRope: boolean;
  /** Whether a window hides the past unless the file says otherwise. */
  readonly hasWindow: boolean;
  /** As llama.cpp reads it. */
  readonly gguf: GgufForm;
  /** What its config class takes where the file says nothing. */
  readonly defaults: {
    readonly maxPositionEmbeddings: number;
    /** Null: as many as there are query heads. */
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
  /** Whether neighbors in a head turn together, not halves: its rows change places. */
  readonly isInterleaved: boolean;
  /** Whether it reads the factors of Llama 3.1's scaling. */
  readonly readsRopeFactors: boolean;
  /** The one interval of layers without a rotary embedding that it computes; null: it knows none. */
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

/** In the order in which an export looks for the first that holds a model. */
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

/** Classes that are asked for and not computed, by what is missing. */
export const missingArchitectures: Readonly<Record<string, string>> = {
  Gemma3ForCausalLM:
    'norms behind attention and MLP, gains of 1 + w, GELU, a scaled embedding, scores scaled by query_pre_attn_scalar, linear scaling of the rotary embedding, sliding windows with a rotary base of their own, and heads of 256',
};

/** What decides which class a model is. */
export type ArchitectureTraits = Pick<LlamaConfig, 'attentionBias' | 'qkNorm' | 'noRopeInterval'>;

/** The first class that computes such a model; undefined where none does. */
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
