import type { Device } from '../device/device.js';
import { headSize, linearShapes } from '../plan/parameters.js';
import { targetModules, type LlamaConfig, type TargetModule } from '../plan/runSpec.js';
import { Random } from '../random.js';
import { makeParameter, type Parameter } from './parameter.js';

/** Standard deviation of every new weight, except for norms, which start at 1, and biases, which start at 0. */
const initialStd = 0.02;

/** One weight of the model, named as in Hugging Face's files. */
export interface WeightShape {
  name: string;
  role: 'shared' | 'base';
  /** In our layout: base weights are [in, out], the reverse of the files. */
  shape: number[];
}

/** Names of one block's parts, as in Hugging Face. */
export const blockNames = {
  inputNorm: 'input_layernorm',
  attentionNorm: 'post_attention_layernorm',
  queryNorm: 'self_attn.q_norm',
  keyNorm: 'self_attn.k_norm',
  layerName: (block: number, module: TargetModule) => `model.layers.${block}.${parents[module]}.${module}`,
  normName: (block: number, norm: string) => `model.layers.${block}.${norm}.weight`,
};

export const embeddingName = 'model.embed_tokens.weight';
export const finalNormName = 'model.norm.weight';
export const headName = 'lm_head.weight';

const parents: Record<TargetModule, 'self_attn' | 'mlp'> = {
  q_proj: 'self_attn',
  k_proj: 'self_attn',
  v_proj: 'self_attn',
  o_proj: 'self_attn',
  gate_proj: 'mlp',
  up_proj: 'mlp',
  down_proj: 'mlp',
};

/** Whether a layer has a bias: with `attentionBias` query, key and value do. */
export function hasBias({ attentionBias }: LlamaConfig, module: TargetModule): boolean {
  return attentionBias && (module === 'q_proj' || module === 'k_proj' || module === 'v_proj');
}

/** Every weight of a model without adapters, in the order of `Llama.parameters`. */
export function weightShapes(config: LlamaConfig): WeightShape[] {
  const { vocabSize, hiddenSize } = config;
  const shapes = linearShapes(config);
  const norm = (name: string, size = hiddenSize): WeightShape => ({ name, role: 'shared', shape: [size] });
  const linear = (block: number, module: TargetModule): WeightShape => ({
    name: `${blockNames.layerName(block, module)}.weight`,
    role: 'base',
    shape: [shapes[module].inFeatures, shapes[module].outFeatures],
  });
  const list: WeightShape[] = [{ name: embeddingName, role: 'shared', shape: [vocabSize, hiddenSize] }];
  for (let block = 0; block < config.numHiddenLayers; block++) {
    list.push(norm(blockNames.normName(block, blockNames.inputNorm)));
    for (const module of targetModules.filter((name) => parents[name] === 'self_attn')) {
      list.push(linear(block, module));
      if (hasBias(config, module)) {
        const name = `${blockNames.layerName(block, module)}.bias`;
        list.push({ name, role: 'shared', shape: [shapes[module].outFeatures] });
      }
    }
    if (config.qkNorm)
      for (const name of [blockNames.queryNorm, blockNames.keyNorm])
        list.push(norm(blockNames.normName(block, name), headSize(config)));
    list.push(norm(blockNames.normName(block, blockNames.attentionNorm)));
    for (const module of targetModules.filter((name) => parents[name] === 'mlp'))
      list.push(linear(block, module));
  }
  list.push(norm(finalNormName));
  if (!config.tieWordEmbeddings)
    list.push({ name: headName, role: 'shared', shape: [vocabSize, hiddenSize] });
  return list;
}

/** A new weight, drawn from the stream named after it. */
export function newWeight(device: Device, { name, role, shape }: WeightShape, seed: number): Parameter {
  const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
  if (shape.length === 1) values.fill(name.endsWith('.bias') ? 0 : 1);
  else Random.forStream(seed, 'init', name).fillNormal(values, initialStd);
  return makeParameter(device, name, role, values, shape);
}

/** A weight with given values. Throws on a wrong length. */
export function givenWeight(
  device: Device,
  { name, role, shape }: WeightShape,
  values: Float32Array,
): Parameter {
  const [first = 1, second = 1] = shape;
  if (values.length !== first * second) {
    throw new Error(
      `${name} has ${values.length} values, the configuration of the model needs ${first * second} (${shape.join(' x ')})`,
    );
  }
  return makeParameter(device, name, role, values, shape);
}

/** [rows, columns] -> [columns, rows], in tiles that fit the cache. */
export function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const tile = 32;
  const result = new Float32Array(values.length);
  for (let top = 0; top < rows; top += tile) {
    for (let left = 0; left < columns; left += tile) {
      const bottom = Math.min(rows, top + tile);
      const right = Math.min(columns, left + tile);
      for (let row = top; row < bottom; row++) {
        for (let column = left; column < right; column++)
          result[column * rows + row] = values[row * columns + column]!;
      }
    }
  }
  return result;
}
