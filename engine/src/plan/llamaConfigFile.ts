import { EngineError } from '../engineError.js';
import { architectureOf, architectures, missingArchitectures, type Architecture } from './architectures.js';
import { headDimMax, headSize, hasRope } from './parameters.js';
import type { LlamaConfig, RopeScaling, WeightType } from './runSpec.js';

/** The folder is not a model that this engine supports; the message names the file, key or tensor, what was expected and what was found. */
export class ModelFolderInvalid extends EngineError {
  constructor(
    /** `config.json`, a weights file, or a tensor. */
    readonly subject: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super('MODEL_FOLDER_INVALID', `${subject}: expected ${expected}, found ${found}`);
  }
}

/** Text of a config.json from which Hugging Face loads this model. */
export function formatLlamaConfig(
  config: LlamaConfig,
  options: { weightType: WeightType; tokenIds: object },
): string {
  const architecture = architectureOf(config);
  if (architecture === undefined) throw new Error('No class of Hugging Face has all that this model has');
  const { className, modelType, attentionBias, skipsRope } = architecture;
  const content = {
    architectures: [className],
    model_type: modelType,
    ...(attentionBias ? { use_sliding_window: false } : { attention_bias: false }),
    ...(skipsRope && {
      // Its class has a default, which may be beyond the vocabulary.
      pad_token_id: null,
      no_rope_layers: layers(config).map((layer) => Number(hasRope(config, layer))),
      no_rope_layer_interval: config.noRopeInterval,
    }),
    attention_dropout: 0,
    ...options.tokenIds,
    head_dim: headSize(config),
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
    rope_scaling: config.ropeScaling && formatRopeScaling(config.ropeScaling),
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tieWordEmbeddings,
    torch_dtype: options.weightType,
    use_cache: true,
    vocab_size: config.vocabSize,
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}

function layers({ numHiddenLayers }: Pick<LlamaConfig, 'numHiddenLayers'>): number[] {
  return Array.from({ length: numHiddenLayers }, (_, layer) => layer);
}

function formatRopeScaling(scaling: RopeScaling): Record<string, unknown> {
  return {
    rope_type: 'llama3',
    factor: scaling.factor,
    low_freq_factor: scaling.lowFrequencyFactor,
    high_freq_factor: scaling.highFrequencyFactor,
    original_max_position_embeddings: scaling.originalMaxPositionEmbeddings,
  };
}

/** Reads a config.json with the defaults of Hugging Face's config classes. Throws ModelFolderInvalid if the model is not supported. */
export function parseLlamaConfig(text: string): LlamaConfig {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new ModelFolderInvalid('config.json', 'JSON', `${text.length} characters that are not`);
  }
  if (!isObject(json)) throw new ModelFolderInvalid('config.json', 'an object', shown(json));
  return llamaConfigOf(json);
}

/** The same from a parsed config.json. */
export function llamaConfigOf(json: Record<string, unknown>): LlamaConfig {
  const keys = new Map(Object.entries(json));
  const architecture = architectureNamed(keys);
  const { attentionBias, headNorms, defaults } = architecture;
  refuseUnsupported(keys);

  const hiddenSize = positiveInteger(keys, 'hidden_size');
  const numAttentionHeads = positiveInteger(keys, 'num_attention_heads');
  const numKeyValueHeads = positiveInteger(
    keys,
    'num_key_value_heads',
    // In every class null means as many as query heads; a missing key means the default of its class.
    keys.get('num_key_value_heads') === null
      ? numAttentionHeads
      : (defaults.numKeyValueHeads ?? numAttentionHeads),
  );
  const maxPositionEmbeddings = positiveInteger(
    keys,
    'max_position_embeddings',
    defaults.maxPositionEmbeddings,
  );
  const numHiddenLayers = positiveInteger(keys, 'num_hidden_layers');
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    throw new ModelFolderInvalid(
      'config.json num_key_value_heads',
      `a divisor of num_attention_heads ${numAttentionHeads}`,
      `${numKeyValueHeads}`,
    );
  }
  refuseWindows(keys, architecture, maxPositionEmbeddings);
  return {
    vocabSize: positiveInteger(keys, 'vocab_size'),
    hiddenSize,
    intermediateSize: positiveInteger(keys, 'intermediate_size'),
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads,
    headDim: headDimOf(keys, hiddenSize, numAttentionHeads, defaults.headDim),
    maxPositionEmbeddings,
    ropeTheta: positiveNumber(
      'rope_theta',
      keys.get('rope_theta') ?? ropeKeys(keys)?.rope_theta ?? defaults.ropeTheta,
    ),
    rmsNormEps: positiveNumber('rms_norm_eps', keys.get('rms_norm_eps') ?? 1e-6),
    tieWordEmbeddings: flag(keys, 'tie_word_embeddings', defaults.tieWordEmbeddings),
    ropeScaling: ropeScalingOf(keys, maxPositionEmbeddings),
    attentionBias,
    qkNorm: headNorms,
    noRopeInterval: noRopeIntervalOf(keys, architecture, numHiddenLayers),
  };
}

/** 0 if head_dim is hidden_size / num_attention_heads. */
function headDimOf(
  keys: ReadonlyMap<string, unknown>,
  hiddenSize: number,
  numAttentionHeads: number,
  otherwise: number | null,
): number {
  const share = hiddenSize / numAttentionHeads;
  if ((keys.get('head_dim') ?? otherwise) === null && !Number.isInteger(share))
    throw invalid(
      'num_attention_heads',
      `heads of an even size of at most ${headDimMax} that divide hidden_size ${hiddenSize}`,
      numAttentionHeads,
    );
  const headDim = positiveInteger(keys, 'head_dim', otherwise ?? share);
  // Rotary embedding rotates pairs of features.
  const isPossible = headDim % 2 === 0 && headDim <= headDimMax;
  if (headDim === share) {
    if (isPossible) return 0;
    const expected = `heads of an even size of at most ${headDimMax} that divide hidden_size ${hiddenSize}`;
    throw invalid('num_attention_heads', expected, numAttentionHeads);
  }
  if (!isPossible) throw invalid('head_dim', `an even number of at most ${headDimMax}`, headDim);
  return headDim;
}

/** Interval of the layers without a rotary embedding; the only pattern that is supported. */
function noRopeIntervalOf(
  keys: ReadonlyMap<string, unknown>,
  { skipsRope, defaults }: Architecture,
  numHiddenLayers: number,
): number {
  if (!skipsRope) return 0;
  const given = keys.get('no_rope_layers') ?? null;
  if (given === null) {
    const interval = positiveInteger(keys, 'no_rope_layer_interval', defaults.noRopeInterval);
    return interval > numHiddenLayers ? 0 : interval;
  }
  const isList = Array.isArray(given) && given.length >= numHiddenLayers;
  const list = isList ? given.slice(0, numHiddenLayers).map(Number) : [];
  const interval = list.indexOf(0) + 1;
  const isPeriodic = list.every((has, layer) => has === Number(hasRope({ noRopeInterval: interval }, layer)));
  if (!isList || !isPeriodic)
    throw invalid('no_rope_layers', `${numHiddenLayers} entries, 1 but for each n-th, which is 0`, given);
  return interval;
}

function architectureNamed(keys: ReadonlyMap<string, unknown>): Architecture {
  const modelType = keys.get('model_type') ?? null;
  const names: unknown = keys.get('architectures') ?? null;
  if (names !== null) {
    const list = Array.isArray(names) ? (names as unknown[]) : [];
    const found = architectures.find(({ className }) => list.includes(className));
    if (found === undefined) {
      const known = architectures.map(({ className }) => className).join(', ');
      throw invalid('architectures', missingOf(list) ?? `one of ${known}`, names);
    }
    if (modelType !== null && modelType !== found.modelType)
      throw invalid('model_type', `${JSON.stringify(found.modelType)}, as architectures say`, modelType);
    return found;
  }
  const found = architectures.find((one) => one.modelType === (modelType ?? 'llama'));
  if (found === undefined) {
    const types = architectures.map((one) => JSON.stringify(one.modelType));
    throw invalid('model_type', `one of ${types.join(', ')}`, modelType);
  }
  return found;
}

function missingOf(names: readonly unknown[]): string | null {
  const name = names.find((one) => typeof one === 'string' && Object.hasOwn(missingArchitectures, one));
  return name === undefined
    ? null
    : `a class without what is not computed of ${String(name)}: ${missingArchitectures[String(name)]}`;
}

/**
 * A model with another value for one of these keys computes something else: it would load and give wrong results. The keys from
 * `hidden_activation` on belong to other classes, whose files may call themselves a Llama.
 */
const neutral: Readonly<Record<string, unknown>> = {
  hidden_act: 'silu',
  // In a Llama this also adds a bias to o_proj; only the biases of Qwen2 (queries, keys, values) are supported.
  attention_bias: false,
  mlp_bias: false,
  use_sliding_window: false,
  partial_rotary_factor: 1,
  quantization_config: null,
  hidden_activation: 'silu',
  attn_logit_softcapping: null,
  final_logit_softcapping: null,
  query_pre_attn_scalar: null,
  rope_local_base_freq: null,
  attention_multiplier: null,
  embedding_multiplier: 1,
  residual_multiplier: 1,
  logits_scaling: 1,
  scale_emb: 1,
  rope_interleaved: false,
  use_qk_norm: false,
  qk_layernorm: false,
  clip_qkv: null,
  num_experts: 0,
  num_local_experts: 0,
};

function refuseUnsupported(keys: ReadonlyMap<string, unknown>): void {
  for (const [key, value] of Object.entries(neutral)) {
    const found = keys.get(key);
    if (found !== undefined && found !== null && found !== value)
      throw invalid(key, `${JSON.stringify(value)} or none`, found);
  }
}

/** Keys that are read here, and keys that do not affect what a model computes (training, loading, generation). */
const knownKeys: ReadonlySet<string> = new Set(
  `
  architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
  max_position_embeddings rope_theta rope_scaling rope_parameters rms_norm_eps tie_word_embeddings no_rope_layers no_rope_layer_interval
  layer_types sliding_window max_window_layers initializer_range attention_dropout pretraining_tp use_cache torch_dtype dtype
  bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id bos_token eos_token pad_token
  name_or_path _name_or_path _commit_hash transformers_version transformers.js_config auto_map tokenizer_class prefix
  id2label label2id num_labels problem_type finetuning_task task_specific_params keys_to_ignore_at_inference
  output_hidden_states output_attentions return_dict use_return_dict return_dict_in_generate output_scores gradient_checkpointing
  attn_implementation _attn_implementation _attn_implementation_autoset torchscript use_bfloat16 is_decoder
  is_llama_config max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
  typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences chunk_size_feed_forward
  remove_invalid_values tf_legacy_loss _flash_attn_2_enabled unsloth_version unsloth_fixed
  `
    .trim()
    .split(/\s+/),
);

/** For imports of new models: an unknown key may change what the model computes. Models imported earlier are read despite such keys. */
export function refuseUnknownKeys(json: Record<string, unknown>): void {
  const keys = new Map(Object.entries(json));
  const { className } = architectureNamed(keys);
  for (const [key, value] of keys) {
    if (knownKeys.has(key) || Object.hasOwn(neutral, key)) continue;
    const isNothing =
      value === null || value === false || (isObject(value) && Object.keys(value).length === 0);
    if (!isNothing && !(Array.isArray(value) && value.length === 0))
      throw invalid(
        key,
        `no key that is not known of ${className}; without it, if it changes nothing of the model`,
        value,
      );
  }
}

/** A window as long as the longest sequence hides nothing; Qwen2 configs contain one without using it. */
function refuseWindows(
  keys: ReadonlyMap<string, unknown>,
  { hasWindow }: Architecture,
  maxPositionEmbeddings: number,
): void {
  const layerTypes = keys.get('layer_types') ?? [];
  if (!Array.isArray(layerTypes) || layerTypes.some((type) => type !== 'full_attention'))
    throw invalid('layer_types', '"full_attention" for every layer, or none', layerTypes);
  if (!hasWindow) return;
  const window = keys.has('sliding_window') ? keys.get('sliding_window') : 4096;
  if (window === null || (typeof window === 'number' && window >= maxPositionEmbeddings)) return;
  throw invalid(
    'sliding_window',
    `null, or at least max_position_embeddings ${maxPositionEmbeddings}`,
    window,
  );
}

/** Newer files keep all rotary settings in `rope_parameters`; older ones keep only the scaling, in `rope_scaling`. */
function ropeKeys(keys: ReadonlyMap<string, unknown>): Record<string, unknown> | null {
  for (const key of ['rope_parameters', 'rope_scaling']) {
    const value = keys.get(key) ?? null;
    if (value === null) continue;
    if (!isObject(value)) throw invalid(key, 'an object or none', value);
    return value;
  }
  return null;
}

function ropeScalingOf(
  keys: ReadonlyMap<string, unknown>,
  maxPositionEmbeddings: number,
): RopeScaling | null {
  const rope = ropeKeys(keys);
  if (rope === null) return null;
  const subject = keys.get('rope_parameters') ? 'rope_parameters' : 'rope_scaling';
  const { rope_type: type = rope.type ?? 'default', partial_rotary_factor: part = 1 } = rope;
  if (part !== 1) throw invalid(`${subject}.partial_rotary_factor`, '1 or none', part);
  if (type === 'default') return null;
  if (type !== 'llama3') throw invalid(`${subject}.rope_type`, '"default" or "llama3"', type);

  const number = (key: string) => positiveNumber(`${subject}.${key}`, rope[key]);
  const lowFrequencyFactor = number('low_freq_factor');
  const highFrequencyFactor = number('high_freq_factor');
  if (highFrequencyFactor <= lowFrequencyFactor) {
    throw invalid(
      `${subject}.high_freq_factor`,
      `above low_freq_factor ${lowFrequencyFactor}`,
      highFrequencyFactor,
    );
  }
  return {
    factor: number('factor'),
    lowFrequencyFactor,
    highFrequencyFactor,
    originalMaxPositionEmbeddings: positiveInteger(
      new Map([[`${subject}.original_max_position_embeddings`, rope.original_max_position_embeddings]]),
      `${subject}.original_max_position_embeddings`,
      maxPositionEmbeddings,
    ),
  };
}

function positiveInteger(keys: ReadonlyMap<string, unknown>, key: string, otherwise?: number): number {
  const value = keys.get(key) ?? otherwise;
  if (typeof value === 'number' && Number.isSafeInteger(value) && value > 0 && value < 2 ** 31) return value;
  throw invalid(key, 'a whole number from 1 to 2147483647', value);
}

function positiveNumber(key: string, value: unknown): number {
  if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value;
  throw invalid(key, 'a number above 0', value);
}

function flag(keys: ReadonlyMap<string, unknown>, key: string, otherwise: boolean): boolean {
  const value = keys.get(key) ?? otherwise;
  if (typeof value === 'boolean') return value;
  throw invalid(key, 'true or false', value);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function invalid(key: string, expected: string, found: unknown): ModelFolderInvalid {
  return new ModelFolderInvalid(`config.json ${key}`, expected, shown(found));
}

/** The value, shortened for a message: a config may contain megabytes of anything. */
function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? 'none';
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
