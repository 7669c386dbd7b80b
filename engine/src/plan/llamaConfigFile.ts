import { EngineError } from '../engineError.js';
import type { LlamaConfig, RopeScaling, WeightType } from './runSpec.js';

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

/** A model class of Hugging Face's that is a Llama to us. */
interface Architecture {
  modelType: string;
  attentionBias: boolean;
  /** What its config class takes where the file says nothing. */
  defaults: { maxPositionEmbeddings: number; numKeyValueHeads: number | null };
}

const architectures: Readonly<Record<string, Architecture>> = {
  LlamaForCausalLM: {
    modelType: 'llama',
    attentionBias: false,
    defaults: { maxPositionEmbeddings: 2048, numKeyValueHeads: null },
  },
  Qwen2ForCausalLM: {
    modelType: 'qwen2',
    attentionBias: true,
    defaults: { maxPositionEmbeddings: 32_768, numKeyValueHeads: 32 },
  },
  MistralForCausalLM: {
    modelType: 'mistral',
    attentionBias: false,
    defaults: { maxPositionEmbeddings: 131_072, numKeyValueHeads: 8 },
  },
};

/** Text of the config.json that Hugging Face loads this model from. */
export function formatLlamaConfig(
  config: LlamaConfig,
  options: { weightType: WeightType; tokenIds: object },
): string {
  const content = {
    architectures: [config.attentionBias ? 'Qwen2ForCausalLM' : 'LlamaForCausalLM'],
    model_type: config.attentionBias ? 'qwen2' : 'llama',
    ...(config.attentionBias ? { use_sliding_window: false } : { attention_bias: false }),
    attention_dropout: 0,
    ...options.tokenIds,
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
    rope_scaling: config.ropeScaling && formatRopeScaling(config.ropeScaling),
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tieWordEmbeddings,
    torch_dtype: options.weightType,
    use_cache: true,
    vocab_size: config.vocabSize,
  };
  return `${JSON.stringify(content, null, 2)}\n`;
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

/** Reads a config.json with the defaults of Hugging Face's config classes. Throws ModelFolderInvalid on what we do not compute. */
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

/** The same from a config.json that was parsed. */
export function llamaConfigOf(json: Record<string, unknown>): LlamaConfig {
  const keys = new Map(Object.entries(json));
  const { attentionBias, defaults } = architectureOf(keys);
  refuseUnsupported(keys);

  const hiddenSize = positiveInteger(keys, 'hidden_size');
  const numAttentionHeads = positiveInteger(keys, 'num_attention_heads');
  const numKeyValueHeads = positiveInteger(
    keys,
    'num_key_value_heads',
    // Null means as many as there are query heads, in every class; a key that is missing, the default of its class.
    keys.get('num_key_value_heads') === null
      ? numAttentionHeads
      : (defaults.numKeyValueHeads ?? numAttentionHeads),
  );
  const maxPositionEmbeddings = positiveInteger(
    keys,
    'max_position_embeddings',
    defaults.maxPositionEmbeddings,
  );
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
  refuseSlidingWindow(keys, maxPositionEmbeddings);
  return {
    vocabSize: positiveInteger(keys, 'vocab_size'),
    hiddenSize,
    intermediateSize: positiveInteger(keys, 'intermediate_size'),
    numHiddenLayers: positiveInteger(keys, 'num_hidden_layers'),
    numAttentionHeads,
    numKeyValueHeads,
    maxPositionEmbeddings,
    ropeTheta: positiveNumber('rope_theta', keys.get('rope_theta') ?? ropeKeys(keys)?.rope_theta ?? 10_000),
    rmsNormEps: positiveNumber('rms_norm_eps', keys.get('rms_norm_eps') ?? 1e-6),
    tieWordEmbeddings: flag(keys, 'tie_word_embeddings'),
    ropeScaling: ropeScalingOf(keys, maxPositionEmbeddings),
    attentionBias,
  };
}

function architectureOf(keys: ReadonlyMap<string, unknown>): Architecture {
  const modelType = keys.get('model_type') ?? null;
  const names = keys.get('architectures') ?? null;
  const known = Object.entries(architectures);
  if (names !== null) {
    const name = Array.isArray(names) ? known.find(([name]) => names.includes(name)) : undefined;
    if (name === undefined)
      throw invalid('architectures', `one of ${known.map(([name]) => name).join(', ')}`, names);
    if (modelType !== null && modelType !== name[1].modelType)
      throw invalid('model_type', `${JSON.stringify(name[1].modelType)}, as architectures say`, modelType);
    return name[1];
  }
  const found = known.find(([, architecture]) => architecture.modelType === (modelType ?? 'llama'));
  if (found === undefined) {
    const types = known.map(([, architecture]) => JSON.stringify(architecture.modelType));
    throw invalid('model_type', `one of ${types.join(', ')}`, modelType);
  }
  return found[1];
}

/** A model that differs in one of these computes something else; it would load and be wrong. */
function refuseUnsupported(keys: ReadonlyMap<string, unknown>): void {
  const only: [key: string, value: unknown][] = [
    ['hidden_act', 'silu'],
    // In a Llama this adds one to o_proj too, which Qwen2, whose biases we compute, does not have.
    ['attention_bias', false],
    ['mlp_bias', false],
    ['use_sliding_window', false],
    ['partial_rotary_factor', 1],
    ['quantization_config', null],
  ];
  for (const [key, value] of only) {
    const found = keys.get(key);
    if (found !== undefined && found !== null && found !== value)
      throw invalid(key, `${JSON.stringify(value)} or none`, found);
  }
}

/** A window as long as the longest sequence hides nothing; Qwen2 names one and leaves it unused. */
function refuseSlidingWindow(keys: ReadonlyMap<string, unknown>, maxPositionEmbeddings: number): void {
  const layerTypes = keys.get('layer_types') ?? [];
  if (!Array.isArray(layerTypes) || layerTypes.some((type) => type !== 'full_attention'))
    throw invalid('layer_types', '"full_attention" for every layer, or none', layerTypes);
  const isMistral = architectureOf(keys) === architectures.MistralForCausalLM;
  if (!isMistral) return;
  const window = keys.has('sliding_window') ? keys.get('sliding_window') : 4096;
  if (window === null || (typeof window === 'number' && window >= maxPositionEmbeddings)) return;
  throw invalid(
    'sliding_window',
    `null, or at least max_position_embeddings ${maxPositionEmbeddings}`,
    window,
  );
}

/** Newer files have all that concerns the rotary embedding in `rope_parameters`, older ones only its scaling, in `rope_scaling`. */
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

function flag(keys: ReadonlyMap<string, unknown>, key: string): boolean {
  const value = keys.get(key) ?? false;
  if (typeof value === 'boolean') return value;
  throw invalid(key, 'true or false', value);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function invalid(key: string, expected: string, found: unknown): ModelFolderInvalid {
  return new ModelFolderInvalid(`config.json ${key}`, expected, shown(found));
}

/** What came, short enough for a message: a config may be megabytes of anything. */
function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? 'none';
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
