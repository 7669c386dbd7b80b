import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { jsonTokenizer, type Tokenizer } from '../data/tokenizer.js';
import type { Device } from '../device/device.js';
import { Llama } from './llama.js';
import { headName, transpose, weightShapes, type WeightShape } from './weights.js';
import type { LlamaConfig } from '../plan/runSpec.js';
import { ModelFolderInvalid, parseLlamaConfig } from '../plan/llamaConfigFile.js';
import { openSafetensors, type SafetensorsFile } from '../io/safetensors.js';

export interface LoadedModel {
  model: Llama;
  /** Null where the folder has no tokenizer.json. */
  tokenizer: Tokenizer | null;
}

/**
 * Reads a Llama model in Hugging Face's layout: config.json, one model.safetensors or shards with an index, tokenizer.json if
 * there is one; float32, float16 or bfloat16. Every tensor is checked: that it is there, its shape, that all of it is
 * finite, and that no other is left over. Throws ModelFolderInvalid, SafetensorsInvalid or DataError TOKENIZER_INVALID;
 * nothing is left behind.
 */
export async function loadModelFolder(device: Device, folder: string): Promise<LoadedModel> {
  return await withModelFolder(folder, async ({ config, tokenizer, read }) => ({
    model: await Llama.fromWeights(device, config, async (weight) => {
      const values = await read(weight);
      const { role, shape } = weight;
      return role === 'base' ? transpose(values, shape[1]!, shape[0]!) : values;
    }),
    tokenizer,
  }));
}

/** What a folder of weights holds. */
export interface ModelFolderReport {
  config: LlamaConfig;
  parameterCount: number;
  /** Null without a tokenizer.json. */
  tokenizerVocabularySize: number | null;
}

/**
 * Checks a folder as loadModelFolder would, holding one tensor at a time; without `values` from config and headers alone.
 * Throws what loadModelFolder throws.
 */
export async function checkModelFolder(
  folder: string,
  { values }: { values: boolean },
): Promise<ModelFolderReport> {
  return await withModelFolder(folder, async ({ config, tokenizer, read }) => {
    const shapes = weightShapes(config);
    if (values) for (const weight of shapes) await read(weight);
    return {
      config,
      parameterCount: shapes.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0),
      tokenizerVocabularySize: tokenizer?.vocabularySize ?? null,
    };
  });
}

interface OpenModelFolder {
  config: LlamaConfig;
  tokenizer: Tokenizer | null;
  /** Values as they stand in the file, all finite. */
  read(weight: WeightShape): Promise<Float32Array>;
}

async function withModelFolder<T>(folder: string, use: (opened: OpenModelFolder) => Promise<T>): Promise<T> {
  const configText = await readText(folder, 'config.json');
  if (configText === null) throw new ModelFolderInvalid('config.json', 'a readable file', 'none');
  const config = parseLlamaConfig(configText);
  const tokenizer = await readTokenizer(folder);
  if (tokenizer !== null && tokenizer.vocabularySize > config.vocabSize) {
    throw new ModelFolderInvalid(
      'config.json vocab_size',
      `at least ${tokenizer.vocabularySize}, as tokenizer.json has`,
      `${config.vocabSize}`,
    );
  }
  const files = await openWeights(folder);
  try {
    const found = locateTensors(files);
    checkTensors(config, found);
    const read = async ({ name }: WeightShape) => {
      const values = await found.get(name)!.file.readFloat32(name);
      const wrong = values.findIndex((value) => !Number.isFinite(value));
      if (wrong >= 0)
        throw new ModelFolderInvalid(name, 'finite values', `${values[wrong]} at position ${wrong}`);
      return values;
    };
    return await use({ config, tokenizer, read });
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
}

/** Seven linear layers and two norms. */
const blockTensorsMin = 9;

type Located = Map<string, { file: SafetensorsFile; shape: readonly number[] }>;

/** The one file of weights, or all shards that the index names. */
async function openWeights(folder: string): Promise<SafetensorsFile[]> {
  const index = await readText(folder, 'model.safetensors.index.json');
  const names = index === null ? ['model.safetensors'] : shardNames(index);
  const files: SafetensorsFile[] = [];
  try {
    for (const name of names) files.push(await openShard(folder, name));
    return files;
  } catch (error) {
    await Promise.all(files.map((file) => file.close()));
    throw error;
  }
}

async function openShard(folder: string, name: string): Promise<SafetensorsFile> {
  return openSafetensors(join(folder, name)).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') throw new ModelFolderInvalid(name, 'a file of weights', 'none');
    throw error;
  });
}

function shardNames(index: string): string[] {
  const subject = 'model.safetensors.index.json';
  let map: unknown;
  try {
    map = (JSON.parse(index) as { weight_map?: unknown } | null)?.weight_map;
  } catch {
    throw new ModelFolderInvalid(subject, 'JSON', `${index.length} characters that are not`);
  }
  if (typeof map !== 'object' || map === null)
    throw new ModelFolderInvalid(
      subject,
      'an object "weight_map"',
      (JSON.stringify(map) ?? 'none').slice(0, 200),
    );
  const names = new Set<string>();
  for (const name of Object.values(map)) {
    // The index comes with the weights from elsewhere: it must not lead out of its folder.
    if (typeof name !== 'string' || name !== basename(name) || !name.endsWith('.safetensors')) {
      throw new ModelFolderInvalid(
        subject,
        'plain names of .safetensors files',
        (JSON.stringify(name) ?? 'none').slice(0, 200),
      );
    }
    names.add(name);
  }
  return [...names].sort();
}

function locateTensors(files: readonly SafetensorsFile[]): Located {
  const found: Located = new Map();
  for (const file of files) {
    for (const [name, { shape }] of file.tensors) {
      if (found.has(name))
        throw new ModelFolderInvalid(name, 'one tensor of that name', 'two, in different shards');
      found.set(name, { file, shape });
    }
  }
  return found;
}

function checkTensors(config: LlamaConfig, found: Located): void {
  // Before anything is made for each of them: a config may claim two billion.
  const blocks = Math.floor(found.size / blockTensorsMin);
  if (config.numHiddenLayers > blocks) {
    throw new ModelFolderInvalid(
      'config.json num_hidden_layers',
      `at most ${blocks}, as there are ${found.size} tensors`,
      `${config.numHiddenLayers}`,
    );
  }
  const shapes = new Map(weightShapes(config).map((weight) => [weight.name, weight]));
  for (const { name, role, shape } of shapes.values()) {
    // Linear weights stand in the files as [out, in].
    const expected = (role === 'base' ? [...shape].reverse() : shape).join(' x ');
    const tensor = found.get(name);
    if (tensor === undefined) throw new ModelFolderInvalid(name, `a tensor ${expected}`, 'none');
    if (tensor.shape.join(' x ') !== expected)
      throw new ModelFolderInvalid(name, `a tensor ${expected}`, tensor.shape.join(' x '));
  }
  for (const name of found.keys()) {
    if (shapes.has(name)) continue;
    // Files of tied models often carry the head again, and older ones the rotary table, which follows from the config.
    if (name.endsWith('.rotary_emb.inv_freq') || (name === headName && config.tieWordEmbeddings)) continue;
    throw new ModelFolderInvalid(name, 'only tensors of a Llama model of this config.json', 'one more');
  }
}

async function readTokenizer(folder: string): Promise<Tokenizer | null> {
  const json = await readText(folder, 'tokenizer.json');
  return json === null ? null : jsonTokenizer(json, 'huggingFace');
}

/** Largest config, index or tokenizer; the largest in use have about 30 MiB. */
const textBytesMax = 64 * 2 ** 20;

/** Null where there is no such file. */
async function readText(folder: string, name: string): Promise<string | null> {
  const expected = `a regular file of at most ${textBytesMax} bytes`;
  let handle: FileHandle;
  try {
    // Not blocking: the open of a pipe would wait for its writer.
    handle = await open(join(folder, name), constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return null;
    throw new ModelFolderInvalid(name, expected, code ?? message);
  }
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw new ModelFolderInvalid(name, expected, 'a folder, pipe or device');
    if (stats.size > textBytesMax) throw new ModelFolderInvalid(name, expected, `${stats.size} bytes`);
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}
