import { EngineError } from '../engineError.js';
import type { LlamaConfig, WeightType } from './runSpec.js';

/** A folder is not a model that this engine can read; the message names file, key or tensor, what was expected and what came. */
export class ModelFolderInvalid extends EngineError {
  constructor(
    /** `config.json`, a file of weights, or a tensor. */
    readonly subject: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super('MODEL_FOLDER_INVALID', `${subject}: expected ${expected}, found ${found}`);
  }
}

/** Text of the config.json that Hugging Face's LlamaForCausalLM loads. Texts begin and end with the same token here. */
export function formatLlamaConfig(
  config: LlamaConfig,
  options: { weightType: WeightType; endOfTextId: number },
): string {
  const content = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: options.endOfTextId,
    eos_token_id: options.endOfTextId,
    head_dim: config.hiddenSize / config.numAttentionHeads,
    hidden_act: 'silu',
    hidden_size: config.hiddenSize,
    initializer_range: 0.02,
    intermediate_size: config.intermediateSize,
    max_position_embeddings: config.maxPositionEmbeddings,
    mlp_bias: false,
    num_attention_heads: config.numAttentionHeads,
    num_hidden_layers: config.numHiddenLayers,
    num_key_value_heads: config.numKeyValueHeads,
    pretraining_tp: 1,
    rms_norm_eps: config.rmsNormEps,
    rope_scaling: null,
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tieWordEmbeddings,
    torch_dtype: options.weightType,
    use_cache: true,
    vocab_size: config.vocabSize,
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}

/** Reads a config.json with the defaults of Hugging Face's LlamaConfig. Throws ModelFolderInvalid on what we do not compute. */
export function parseLlamaConfig(text: string): LlamaConfig {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new ModelFolderInvalid('config.json', 'JSON', `${text.length} characters that are not`);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new ModelFolderInvalid('config.json', 'an object', text.slice(0, 40));
  return llamaConfigOf(json as Record<string, unknown>);
}

/** The same from a config.json that was parsed. */
export function llamaConfigOf(json: Record<string, unknown>): LlamaConfig {
  const keys = new Map(Object.entries(json));
  refuseUnsupported(keys);

  const hiddenSize = positiveInteger(keys, 'hidden_size');
  const numAttentionHeads = positiveInteger(keys, 'num_attention_heads');
  const numKeyValueHeads = positiveInteger(keys, 'num_key_value_heads', numAttentionHeads);
  if (hiddenSize % numAttentionHeads !== 0 || (hiddenSize / numAttentionHeads) % 2 !== 0) {
    throw new ModelFolderInvalid(
      'config.json num_attention_heads',
      `heads of an even size that divide hidden_size ${hiddenSize}`,
      `${numAttentionHeads}`,
    );
  }
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    throw new ModelFolderInvalid(
      'config.json num_key_value_heads',
      `a divisor of num_attention_heads ${numAttentionHeads}`,
      `${numKeyValueHeads}`,
    );
  }
  const headDim = positiveInteger(keys, 'head_dim', hiddenSize / numAttentionHeads);
  if (headDim * numAttentionHeads !== hiddenSize) {
    throw new ModelFolderInvalid(
      'config.json head_dim',
      `hidden_size / num_attention_heads = ${hiddenSize / numAttentionHeads}`,
      `${headDim}`,
    );
  }
  return {
    vocabSize: positiveInteger(keys, 'vocab_size'),
    hiddenSize,
    intermediateSize: positiveInteger(keys, 'intermediate_size'),
    numHiddenLayers: positiveInteger(keys, 'num_hidden_layers'),
    numAttentionHeads,
    numKeyValueHeads,
    maxPositionEmbeddings: positiveInteger(keys, 'max_position_embeddings', 2048),
    ropeTheta: positiveNumber(keys, 'rope_theta', 10_000),
    rmsNormEps: positiveNumber(keys, 'rms_norm_eps', 1e-6),
    tieWordEmbeddings: keys.get('tie_word_embeddings') === true,
  };
}

/** A model that differs in one of these computes something else; it would load and be wrong. */
function refuseUnsupported(keys: ReadonlyMap<string, unknown>): void {
  const architectures = keys.get('architectures') ?? ['LlamaForCausalLM'];
  if (!Array.isArray(architectures) || !architectures.includes('LlamaForCausalLM')) {
    throw new ModelFolderInvalid(
      'config.json architectures',
      'LlamaForCausalLM',
      JSON.stringify(architectures),
    );
  }
  const only: [key: string, value: unknown][] = [
    ['model_type', 'llama'],
    ['hidden_act', 'silu'],
    ['attention_bias', false],
    ['mlp_bias', false],
    ['rope_scaling', null],
    ['quantization_config', null],
  ];
  for (const [key, value] of only) {
    const found = keys.get(key);
    if (found !== undefined && found !== null && found !== value) {
      throw new ModelFolderInvalid(
        `config.json ${key}`,
        `${JSON.stringify(value)} or none`,
        JSON.stringify(found),
      );
    }
  }
  // Newer files put rope_theta in here.
  const rope = keys.get('rope_parameters');
  if (
    typeof rope === 'object' &&
    rope !== null &&
    (rope as { rope_type?: unknown }).rope_type !== 'default'
  ) {
    throw new ModelFolderInvalid(
      'config.json rope_parameters',
      'rope_type "default" or none',
      JSON.stringify(rope),
    );
  }
}

function positiveInteger(keys: ReadonlyMap<string, unknown>, key: string, otherwise?: number): number {
  const value = keys.get(key) ?? otherwise;
  if (typeof value === 'number' && Number.isSafeInteger(value) && value > 0 && value < 2 ** 31) return value;
  throw new ModelFolderInvalid(
    `config.json ${key}`,
    'a whole number from 1 to 2147483647',
    JSON.stringify(value) ?? 'none',
  );
}

function positiveNumber(keys: ReadonlyMap<string, unknown>, key: string, otherwise: number): number {
  const rope = keys.get('rope_parameters') as Record<string, unknown> | undefined;
  const value = keys.get(key) ?? rope?.[key] ?? otherwise;
  if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value;
  throw new ModelFolderInvalid(`config.json ${key}`, 'a number above 0', JSON.stringify(value));
}
