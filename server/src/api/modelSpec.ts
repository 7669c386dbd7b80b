import {
  llamaConfigOf,
  ModelFolderInvalid,
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
import { toModelConfig } from './toProto.js';

export interface ModelLimits {
  parametersMax: number;
  sequenceLengthMax: number;
  vocabularySizeMax: number;
}

/** Weights to continue from, as they were found on the disk. */
export type FoundBaseWeights = { folder: string; config: Record<string, unknown> } | { problem: string };

/**
 * The shape of the model and where its weights begin. `vocabularySize` is the tokenizer's, null when the data set is not
 * known; then what depends on it is not checked. Undefined when there is no shape to check further.
 */
export function parseModelSpec(
  checks: FieldChecks,
  spec: ModelSpec | undefined,
  found: FoundBaseWeights | null,
  vocabularySize: number | null,
  limits: ModelLimits,
): Pick<RunSpec, 'model' | 'baseWeightsFolder' | 'baseWeightsName'> | undefined {
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
    return {
      model: { ...shape, vocabSize: vocabularySize ?? 257 },
      baseWeightsFolder: null,
      baseWeightsName: null,
    };
  }
  if (spec?.config !== undefined) {
    const model = checkShape(checks, 'spec.model.config', spec.config, vocabularySize, limits);
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
    const model = config && checkShape(checks, field, config, vocabularySize, limits);
    const name = spec.baseWeights.weights || spec.baseWeights.artifact || null;
    return model && { model, baseWeightsFolder: found.folder, baseWeightsName: name };
  }
  checks.add('spec.model', 'exactly one of preset, config and base_weights', 'none');
  return undefined;
}

/** Which field names the weights, and what may stand there. */
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

function checkShape(
  checks: FieldChecks,
  field: string,
  config: LlamaConfigProto,
  vocabularySize: number | null,
  limits: ModelLimits,
): LlamaConfig | undefined {
  const before = checks.problems.length;
  const whole = (name: string, value: number | undefined, fallback: number, max: number, min = 1): number =>
    checks.integer(`${field}.${name}`, value, fallback, min, max);
  const hiddenSize = whole('hidden_size', config.hiddenSize, 64, 65_536, 2);
  const intermediateSize = whole('intermediate_size', config.intermediateSize, 64, 1_048_576);
  const numHiddenLayers = whole('num_hidden_layers', config.numHiddenLayers, 1, 512);
  const numAttentionHeads = whole('num_attention_heads', config.numAttentionHeads, 1, 1024);
  const numKeyValueHeads = whole('num_key_value_heads', config.numKeyValueHeads, numAttentionHeads, 1024);
  const maxPositionEmbeddings = whole(
    'max_position_embeddings',
    config.maxPositionEmbeddings,
    1024,
    1 << 20,
    8,
  );
  const ropeTheta = checks.number(`${field}.rope_theta`, config.ropeTheta, 10_000, {
    min: 1,
    max: 1e9,
    above: true,
  });
  const rmsNormEps = checks.number(`${field}.rms_norm_eps`, config.rmsNormEps, 1e-6, {
    min: 0,
    max: 0.1,
    above: true,
  });
  const ropeScaling = checkRopeScaling(checks, `${field}.rope_scaling`, config.ropeScaling);
  const vocabSize = whole('vocab_size', config.vocabSize, vocabularySize ?? 257, limits.vocabularySizeMax, 2);
  if (checks.problems.length > before) return undefined;

  if (hiddenSize % numAttentionHeads !== 0) {
    checks.add(`${field}.num_attention_heads`, `a divisor of hidden_size ${hiddenSize}`, numAttentionHeads);
  } else if ((hiddenSize / numAttentionHeads) % 2 !== 0) {
    // The rotary embedding turns pairs of features.
    checks.add(
      `${field}.num_attention_heads`,
      'an even head size, hidden_size / num_attention_heads',
      hiddenSize / numAttentionHeads,
    );
  }
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    checks.add(
      `${field}.num_key_value_heads`,
      `a divisor of num_attention_heads ${numAttentionHeads}`,
      numKeyValueHeads,
    );
  }
  if (vocabularySize !== null && vocabSize < vocabularySize) {
    checks.add(
      `${field}.vocab_size`,
      `at least ${vocabularySize}, the vocabulary of the data set's tokenizer`,
      vocabSize,
    );
  }
  if (checks.problems.length > before) return undefined;
  return {
    vocabSize,
    hiddenSize,
    intermediateSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads,
    maxPositionEmbeddings,
    ropeTheta,
    rmsNormEps,
    tieWordEmbeddings: config.tieWordEmbeddings ?? false,
    ropeScaling,
    attentionBias: config.attentionBias ?? false,
  };
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

/** The shape as the engine will read it, so that nothing but the weights can be wrong later; code in it is ignored. */
function fromHuggingFace(
  checks: FieldChecks,
  field: string,
  config: Record<string, unknown>,
): LlamaConfigProto | undefined {
  try {
    return toModelConfig(llamaConfigOf(config));
  } catch (error) {
    if (!(error instanceof ModelFolderInvalid)) throw error;
    const key = error.subject.replace(/^config\.json /, '');
    checks.add(`${field}.${key}`, `${error.expected} in config.json`, quote(error.found));
    return undefined;
  }
}
