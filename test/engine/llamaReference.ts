import type { Llama } from '../../engine/dist/model/llama.js';
import type { LlamaConfig } from '../../engine/dist/plan/runSpec.js';
import { valuesIn } from './hostModel.js';

type Matrix = Float64Array[];

/** A small model shape with all kinds of odd sizes that are allowed. */
export function tinyConfig(changes: Partial<LlamaConfig> = {}): LlamaConfig {
  return {
    vocabSize: 37,
    hiddenSize: 24,
    intermediateSize: 40,
    numHiddenLayers: 2,
    numAttentionHeads: 4,
    numKeyValueHeads: 4,
    maxPositionEmbeddings: 32,
    ropeTheta: 10_000,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: false,
    ropeScaling: null,
    attentionBias: false,
    headDim: 0,
    qkNorm: false,
    noRopeInterval: 0,
    ...changes,
  };
}

/**
 * Logits [time * vocabulary] of one sequence in float64, written only from the description of Llama: no tensors, no batches, adapters as W
 * + scale A B. The caller gives `scale`.
 */
export function referenceLogits(model: Llama, ids: ArrayLike<number>, scale = 0): Float64Array {
  const { config } = model;
  const weight = (name: string) => matrixOf(model, name);
  const headDim = config.headDim === 0 ? config.hiddenSize / config.numAttentionHeads : config.headDim;
  const effective = (index: number, parent: string, module: string) => {
    const name = `model.layers.${index}.${parent}.${module}`;
    const w = weight(`${name}.weight`);
    if (!model.parameters.has(`${name}.lora_A`)) return w;
    const delta = product(weight(`${name}.lora_A`), weight(`${name}.lora_B`));
    return w.map((row, i) => row.map((entry, j) => entry + scale * delta[i]![j]!));
  };
  const table = weight('model.embed_tokens.weight');
  let x: Matrix = Array.from(ids, (id) => Float64Array.from(table[id]!));

  for (let index = 0; index < config.numHiddenLayers; index++) {
    const normed = norm(x, weight(`model.layers.${index}.input_layernorm.weight`)[0]!, config.rmsNormEps);
    const projected = (module: string) => {
      const rows = product(normed, effective(index, 'self_attn', module));
      if (!config.attentionBias) return rows;
      const bias = weight(`model.layers.${index}.self_attn.${module}.bias`)[0]!;
      return rows.map((row) => row.map((value, i) => value + bias[i]!));
    };
    const v = projected('v_proj');
    /** Each head, normalized if the model has head norms, and rotated if the layer has rotary embedding. */
    const heads = (name: 'q' | 'k') =>
      projected(`${name}_proj`).map((row, position) =>
        Array.from({ length: row.length / headDim }, (_, head) => {
          const made = slice(row, head, headDim);
          const gain = config.qkNorm && weight(`model.layers.${index}.self_attn.${name}_norm.weight`)[0]!;
          const normed = gain ? norm([made], gain, config.rmsNormEps)[0]! : made;
          const turns = config.noRopeInterval === 0 || (index + 1) % config.noRopeInterval > 0;
          return turns ? turn(normed, position, config) : normed;
        }),
      );
    const [q, k] = [heads('q'), heads('k')];
    const attended = x.map((_, row) => {
      const out = new Float64Array(headDim * config.numAttentionHeads);
      for (let head = 0; head < config.numAttentionHeads; head++) {
        const group = config.numAttentionHeads / config.numKeyValueHeads;
        const keyHead = Math.floor(head / group);
        const query = q[row]![head]!;
        const scores: number[] = [];
        for (let past = 0; past <= row; past++) {
          scores.push(dot(query, k[past]![keyHead]!) / Math.sqrt(headDim));
        }
        const exponentials = scores.map((score) => Math.exp(score - Math.max(...scores)));
        const total = exponentials.reduce((sum, value) => sum + value);
        exponentials.forEach((value, past) => {
          slice(v[past]!, keyHead, headDim).forEach(
            (entry, i) => (out[head * headDim + i]! += (value / total) * entry),
          );
        });
      }
      return out;
    });
    x = sum(x, product(attended, effective(index, 'self_attn', 'o_proj')));

    const inner = norm(
      x,
      weight(`model.layers.${index}.post_attention_layernorm.weight`)[0]!,
      config.rmsNormEps,
    );
    const gate = product(inner, effective(index, 'mlp', 'gate_proj'));
    const up = product(inner, effective(index, 'mlp', 'up_proj'));
    const hidden = gate.map((row, i) => row.map((value, j) => (value / (1 + Math.exp(-value))) * up[i]![j]!));
    x = sum(x, product(hidden, effective(index, 'mlp', 'down_proj')));
  }
  const last = norm(x, weight('model.norm.weight')[0]!, config.rmsNormEps);
  const head = weight(config.tieWordEmbeddings ? 'model.embed_tokens.weight' : 'lm_head.weight');
  return Float64Array.from(last.flatMap((row) => head.map((words) => dot(row, words))));
}

/** Rows of a parameter; a vector is one row. */
function matrixOf(model: Llama, name: string): Matrix {
  const parameter = model.parameters.get(name)!;
  const columns = parameter.shape.at(-1)!;
  const values = valuesIn(model.device, parameter);
  return Array.from({ length: values.length / columns }, (_, row) =>
    Float64Array.from(values.slice(row * columns, (row + 1) * columns)),
  );
}

function product(a: Matrix, b: Matrix): Matrix {
  return a.map((row) => {
    const result = new Float64Array(b[0]!.length);
    row.forEach((factor, k) => b[k]!.forEach((entry, j) => (result[j]! += factor * entry)));
    return result;
  });
}

function sum(a: Matrix, b: Matrix): Matrix {
  return a.map((row, i) => row.map((entry, j) => entry + b[i]![j]!));
}

function norm(x: Matrix, gain: Float64Array, epsilon: number): Matrix {
  return x.map((row) => {
    const factor = 1 / Math.sqrt(dot(row, row) / row.length + epsilon);
    return row.map((entry, i) => entry * factor * gain[i]!);
  });
}

/** Entry i is rotated with entry i + half, by position * base^(-i / half). */
function turn(head: Float64Array, position: number, config: LlamaConfig): Float64Array {
  const half = head.length / 2;
  return head.map((entry, i) => {
    const angle = (2 * Math.PI * position) / wavelength(i % half, half, config);
    return i < half
      ? entry * Math.cos(angle) - head[i + half]! * Math.sin(angle)
      : entry * Math.cos(angle) + head[i - half]! * Math.sin(angle);
  });
}

/** Number of positions for a full turn of a pair of features. */
function wavelength(pair: number, half: number, { ropeTheta, ropeScaling }: LlamaConfig): number {
  const plain = 2 * Math.PI * ropeTheta ** (pair / half);
  if (ropeScaling === null) return plain;
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalMaxPositionEmbeddings } = ropeScaling;
  if (plain < originalMaxPositionEmbeddings / highFrequencyFactor) return plain;
  if (plain > originalMaxPositionEmbeddings / lowFrequencyFactor) return plain * factor;
  const smooth =
    (originalMaxPositionEmbeddings / plain - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
  return plain / ((1 - smooth) / factor + smooth);
}

function slice(row: Float64Array, head: number, headDim: number): Float64Array {
  return row.slice(head * headDim, (head + 1) * headDim);
}

function dot(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, entry, i) => sum + entry * b[i]!, 0);
}
