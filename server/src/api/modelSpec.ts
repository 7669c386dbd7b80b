import {
  architectureOf,
  emptyModel,
  headDimMax,
  llamaConfigOf,
  refuseUnknownKeys,
  ModelFolderInvalid,
  modelSettings,
  presets,
  type LlamaConfig,
  type RopeScaling,
  type RunSpec,
} from '@relora/engine/plan';
import type {
  BaseWeights,
  LlamaConfig as LlamaConfigProto,
  ModelSpec,
  RopeScaling as RopeScalingProto,
} from '@relora/sdk/contract';
import { quote } from '../errors.js';
import type { FieldChecks } from './fieldChecks.js';
import { nearest } from '../nearest.js';
import type { SpecReader } from './specReader.js';
import { toModelConfig } from './toProto.js';

/** Weights to continue from, as found on the disk. */
export type FoundBaseWeights = { folder: string; config: Record<string, unknown> } | { problem: string };

/**
 * The shape of the model and where its weights come from. While the tokenizer's vocabulary is unknown, what depends on it is not checked.
 * Undefined if there is no shape to check further.
 */
export function parseModelSpec(
  reader: SpecReader,
  spec: ModelSpec | undefined,
  found: FoundBaseWeights | null,
): Pick<RunSpec, 'model' | 'baseWeightsFolder' | 'baseWeightsName'> | undefined {
  const { checks, context } = reader;
  if (spec?.preset !== undefined) {
    const shape = Object.hasOwn(presets, spec.preset) ? presets[spec.preset] : undefined;
    if (shape === undefined) {
      const names = Object.keys(presets);
      checks.add(
        'spec.model.preset',
        `one of ${names.join(', ')} (did you mean ${nearest(spec.preset, names)}?)`,
        quote(spec.preset),
      );
      return undefined;
    }
    context.spec.model = shape;
    const model = { ...shape, vocabSize: context.vocabularySize ?? 257 };
    return { model, baseWeightsFolder: null, baseWeightsName: null };
  }
  if (spec?.config !== undefined) {
    const model = parseShape(reader, 'spec.model.config', spec.config);
    return model && { model, baseWeightsFolder: null, baseWeightsName: null };
  }
  if (spec?.baseWeights !== undefined) {
    const { source, expected } = baseWeightsSource(spec.baseWeights);
    const field = `spec.model.base_weights${source}`;
    if (found === null || 'problem' in found) {
      checks.add(field, expected, found?.problem ?? '');
      return undefined;
    }
    const config = fromHuggingFace(checks, field, found.config);
    const model = config && parseShape(reader, field, config);
    const name = spec.baseWeights.weights || spec.baseWeights.artifact || null;
    return model && { model, baseWeightsFolder: found.folder, baseWeightsName: name };
  }
  checks.add('spec.model', 'exactly one of preset, config and base_weights', 'none');
  return undefined;
}

/** Which field names the weights, and what it must be. */
function baseWeightsSource({ path, weights, artifact }: BaseWeights): { source: string; expected: string } {
  if ([path, weights, artifact].filter(Boolean).length !== 1)
    return { source: '', expected: 'exactly one of path, weights and artifact' };
  if (weights) return { source: '.weights', expected: 'weights/{weights} of weights that are READY' };
  if (artifact) return { source: '.artifact', expected: 'jobs/{job}/artifacts/{artifact} of merged weights' };
  return {
    source: '.path',
    expected: 'a folder with config.json and safetensors inside a folder of RELORA_ALLOWED_FOLDERS',
  };
}

function parseShape(reader: SpecReader, field: string, config: LlamaConfigProto): LlamaConfig | undefined {
  const { checks, context } = reader;
  const before = checks.problems.length;
  const shape = reader.read(field, modelSettings, config, (context.spec.model = emptyModel()));
  const model = {
    ...shape,
    ropeScaling: checkRopeScaling(checks, `${field}.rope_scaling`, config.ropeScaling),
  };
  if (checks.problems.length === before) checkHeads(checks, field, model, context.vocabularySize);
  if (checks.problems.length === before) return model;
  context.spec.model = null;
  return undefined;
}

function checkHeads(
  checks: FieldChecks,
  field: string,
  model: LlamaConfig,
  vocabularySize: number | null,
): void {
  const { hiddenSize, headDim, numAttentionHeads, numKeyValueHeads, vocabSize } = model;
  if (headDim !== 0) {
    if (headDim % 2 !== 0) checks.add(`${field}.head_dim`, 'an even number', headDim);
  } else if (hiddenSize % numAttentionHeads !== 0) {
    checks.add(`${field}.num_attention_heads`, `a divisor of hidden_size ${hiddenSize}`, numAttentionHeads);
  } else {
    const size = hiddenSize / numAttentionHeads;
    // The rotary embedding rotates pairs of features.
    if (size % 2 !== 0 || size > headDimMax)
      checks.add(
        `${field}.num_attention_heads`,
        `an even head size of at most ${headDimMax}, hidden_size / num_attention_heads`,
        size,
      );
  }
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    checks.add(
      `${field}.num_key_value_heads`,
      `a divisor of num_attention_heads ${numAttentionHeads}`,
      numKeyValueHeads,
    );
  }
  if (architectureOf(model) === undefined)
    checks.add(
      `${field}.${model.qkNorm ? 'qk_norm' : 'no_rope_interval'}`,
      'one at most of attention_bias, qk_norm and no_rope_interval, as classes of Hugging Face have them',
      model.qkNorm ? 'true' : model.noRopeInterval,
    );
  if (vocabularySize !== null && vocabSize < vocabularySize) {
    checks.add(
      `${field}.vocab_size`,
      `at least ${vocabularySize}, the vocabulary of the data set's tokenizer`,
      vocabSize,
    );
  }
}

function checkRopeScaling(
  checks: FieldChecks,
  field: string,
  scaling: RopeScalingProto | undefined,
): RopeScaling | null {
  if (scaling === undefined) return null;
  const lowFrequencyFactor = checks.number(`${field}.low_freq_factor`, scaling.lowFreqFactor, 1, {
    min: 0,
    max: 1e6,
    above: true,
  });
  return {
    factor: checks.number(`${field}.factor`, scaling.factor, 1, { min: 1, max: 1e6 }),
    lowFrequencyFactor,
    highFrequencyFactor: checks.number(`${field}.high_freq_factor`, scaling.highFreqFactor, 1, {
      min: lowFrequencyFactor,
      max: 1e6,
      above: true,
    }),
    originalMaxPositionEmbeddings: checks.integer(
      `${field}.original_max_position_embeddings`,
      scaling.originalMaxPositionEmbeddings,
      1,
      1,
      1 << 20,
    ),
  };
}

/** The shape as the engine will read it, so that only the weights can still be wrong later; code in it is ignored. */
function fromHuggingFace(
  checks: FieldChecks,
  field: string,
  config: Record<string, unknown>,
): LlamaConfigProto | undefined {
  try {
    const read = llamaConfigOf(config);
    refuseUnknownKeys(config);
    return toModelConfig(read);
  } catch (error) {
    if (!(error instanceof ModelFolderInvalid)) throw error;
    const key = error.subject.replace(/^config\.json /, '');
    checks.add(`${field}.${key}`, `${error.expected} in config.json`, quote(error.found));
    return undefined;
  }
}
