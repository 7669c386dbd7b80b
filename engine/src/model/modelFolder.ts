import { constants } from 'node:fs';
import { open, readdir, type FileHandle } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { jsonTokenizer, type Tokenizer } from '../data/tokenizer.js';
import type { Device } from '../device/device.js';
import { isDiskFault } from '../io/diskFault.js';
import { Llama } from './llama.js';
import {
  chatTemplateBytesMax,
  chatTemplatesMax,
  modelFileBytesMax,
  modelFileNames,
  type ChatTemplateName,
  type ModelFiles,
} from './modelFiles.js';
import { embeddingName, headName, transpose, weightShapes, type WeightShape } from './weights.js';
import { chatTemplatePattern, chatTemplatesFolder } from '../plan/chatTemplates.js';
import { endTokensOf } from '../plan/endTokens.js';
import type { LlamaConfig } from '../plan/runSpec.js';
import { ModelFolderInvalid, parseLlamaConfig, refuseUnknownKeys } from '../plan/llamaConfigFile.js';
import { openBeneath } from '../io/openBeneath.js';
import { readSafetensors, type SafetensorsFile } from '../io/safetensors.js';

/** Location of a model: `beneath` lists the folders that its files must not lead out of, null for a folder of our own. */
export interface ModelPlace {
  folder: string;
  beneath: readonly string[] | null;
  tokenizerCpuSeconds?: number | undefined;
}

export interface LoadedModel {
  model: Llama;
  /** Null if the folder has no tokenizer.json. */
  tokenizer: Tokenizer | null;
  modelFiles: ModelFiles;
  warnings: ModelWarning[];
}

/** Something that can be read but was probably not intended. */
export interface ModelWarning {
  reason: string;
  message: string;
}

/**
 * Reads a Llama model in Hugging Face layout: config.json, one model.safetensors or shards with an index, tokenizer.json if there is one;
 * float32, float16 or bfloat16. Checks that every tensor exists, has the right shape and only finite values, and that there are no
 * additional ones. Throws ModelFolderInvalid, SafetensorsInvalid or DataError TOKENIZER_INVALID, after releasing everything.
 * @param isTied whether the head is the embedding, for a job that was stored with this; by default as in the weights
 */
export async function loadModelFolder(
  device: Device,
  folder: string,
  { beneath = null, isTied }: { beneath?: ModelPlace['beneath']; isTied?: boolean } = {},
): Promise<LoadedModel> {
  const opened = async ({ config, tokenizer, modelFiles, warnings, read }: OpenModelFolder) => ({
    model: await Llama.fromWeights(device, config, async (weight) => asHeld(weight, await read(weight))),
    tokenizer,
    modelFiles,
    warnings,
  });
  return await withModelFolder({ folder, beneath }, isTied, opened);
}

/** Calls `use` with the weights of a folder one at a time, checked as in loadModelFolder; linear ones [in, out]. */
export async function withFolderWeights<T>(
  folder: string,
  use: (config: LlamaConfig, read: (weight: WeightShape) => Promise<Float32Array>) => Promise<T>,
): Promise<T> {
  return await withModelFolder({ folder, beneath: null }, undefined, ({ config, read }) =>
    use(config, async (weight) => asHeld(weight, await read(weight))),
  );
}

/** Linear weights in files are [out, in]. */
function asHeld({ role, shape }: WeightShape, values: Float32Array): Float32Array {
  return role === 'base' ? transpose(values, shape[1]!, shape[0]!) : values;
}

/** Content of a folder of weights. */
export interface ModelFolderReport {
  config: LlamaConfig;
  parameterCount: number;
  /** Null without a tokenizer.json. */
  tokenizerVocabularySize: number | null;
  warnings: ModelWarning[];
}

/**
 * Checks a folder as loadModelFolder would, with one tensor in memory at a time; without `values` only config and headers are read, and the
 * head if the config says that it is tied. Throws what loadModelFolder throws.
 */
export async function checkModelFolder(
  folder: string,
  {
    values,
    beneath = null,
    tokenizerCpuSeconds,
  }: { values: boolean; beneath?: ModelPlace['beneath']; tokenizerCpuSeconds?: number },
): Promise<ModelFolderReport> {
  return await withModelFolder(
    { folder, beneath, tokenizerCpuSeconds },
    undefined,
    async ({ config, tokenizer, modelFiles, warnings, read }) => {
      refuseUnknownKeys(JSON.parse(modelFiles['config.json']!) as Record<string, unknown>);
      const shapes = weightShapes(config);
      if (values) for (const weight of shapes) await read(weight);
      return {
        config,
        parameterCount: shapes.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0),
        tokenizerVocabularySize: tokenizer?.vocabularySize ?? null,
        warnings,
      };
    },
  );
}

interface OpenModelFolder {
  config: LlamaConfig;
  tokenizer: Tokenizer | null;
  modelFiles: ModelFiles;
  warnings: ModelWarning[];
  /** Values as stored in the file, all finite. */
  read(weight: WeightShape): Promise<Float32Array>;
}

async function withModelFolder<T>(
  place: ModelPlace,
  isTied: boolean | undefined,
  use: (opened: OpenModelFolder) => Promise<T>,
): Promise<T> {
  const modelFiles = await readModelFiles(place);
  const configText = modelFiles['config.json'];
  if (configText === undefined) {
    const where = place.beneath === null ? '' : ' inside of the allowed folders';
    throw new ModelFolderInvalid('config.json', `a readable file${where}`, 'none');
  }
  const named = parseLlamaConfig(configText);
  const tokenizer = await readTokenizer(place, modelFiles);
  if (tokenizer !== null && tokenizer.vocabularySize > named.vocabSize) {
    throw new ModelFolderInvalid(
      'config.json vocab_size',
      `at least ${tokenizer.vocabularySize}, as tokenizer.json has`,
      `${named.vocabSize}`,
    );
  }
  const files = await openWeights(place);
  try {
    const found = locateTensors(files);
    const read = async (name: string) => {
      const values = await found.get(name)!.file.readFloat32(name);
      const wrong = values.findIndex((value) => !Number.isFinite(value));
      if (wrong >= 0)
        throw new ModelFolderInvalid(name, 'finite values', `${values[wrong]} at position ${wrong}`);
      return values;
    };
    checkTensors(named, found);
    const warnings: ModelWarning[] = [];
    const ties =
      named.tieWordEmbeddings && (isTied === true || !(await hasHeadOfItsOwn(named, found, read, warnings)));
    const config = { ...named, tieWordEmbeddings: ties };
    return await use({ config, tokenizer, modelFiles, warnings, read: ({ name }) => read(name) });
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
}

/** Whether a model with tied embeddings in its config has a head that differs from its embedding: that head is then used. */
async function hasHeadOfItsOwn(
  config: LlamaConfig,
  found: Located,
  read: (name: string) => Promise<Float32Array>,
  warnings: ModelWarning[],
): Promise<boolean> {
  if (!found.has(headName)) return false;
  const untied = { ...config, tieWordEmbeddings: false };
  checkTensors(untied, found);
  const [head, embedding] = [await read(headName), await read(embeddingName)];
  if (head.every((value, i) => value === embedding[i])) return false;
  warnings.push({
    reason: 'HEAD_NOT_TIED',
    message: `config.json says tie_word_embeddings, but ${headName} differs from ${embeddingName}: the model is loaded untied, with that head, as transformers 5 does`,
  });
  return true;
}

/** Seven linear layers and two norms. */
const blockTensorsMin = 9;

type Located = Map<string, { file: SafetensorsFile; shape: readonly number[] }>;

/** The single weights file, or all shards that the index names. */
async function openWeights(place: ModelPlace): Promise<SafetensorsFile[]> {
  const index = await readText(place, 'model.safetensors.index.json');
  const names = index === null ? ['model.safetensors'] : shardNames(index);
  const files: SafetensorsFile[] = [];
  try {
    for (const name of names) files.push(await openShard(place, name));
    return files;
  } catch (error) {
    await Promise.all(files.map((file) => file.close()));
    throw error;
  }
}

async function openShard(place: ModelPlace, name: string): Promise<SafetensorsFile> {
  const handle = await openIn(place, name).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') throw new ModelFolderInvalid(name, 'a file of weights', 'none');
    throw error;
  });
  return await readSafetensors(handle, name);
}

/** Links are followed: within the allowed folders, or anywhere for a folder of our own. */
async function openIn({ folder, beneath }: ModelPlace, name: string): Promise<FileHandle> {
  const path = join(folder, name);
  if (beneath !== null) return (await openBeneath(beneath, path)).handle;
  // Non-blocking: opening a pipe would otherwise wait for its writer.
  return await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
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
    // The index is untrusted: its names must not lead out of the folder.
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
  // Checked before anything is created per block: a config may claim two billion.
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
    // Linear weights in files are [out, in].
    const expected = (role === 'base' ? [...shape].reverse() : shape).join(' x ');
    const tensor = found.get(name);
    if (tensor === undefined) throw new ModelFolderInvalid(name, `a tensor ${expected}`, 'none');
    if (tensor.shape.join(' x ') !== expected)
      throw new ModelFolderInvalid(name, `a tensor ${expected}`, tensor.shape.join(' x '));
  }
  for (const name of found.keys()) {
    if (shapes.has(name)) continue;
    // Files of tied models often contain the head again, and older ones the rotary table, which follows from the config.
    if (name.endsWith('.rotary_emb.inv_freq') || (name === headName && config.tieWordEmbeddings)) continue;
    throw new ModelFolderInvalid(name, 'only tensors of a Llama model of this config.json', 'one more');
  }
}

async function readTokenizer(place: ModelPlace, modelFiles: ModelFiles): Promise<Tokenizer | null> {
  const json = await readText(place, 'tokenizer.json');
  return json === null
    ? null
    : jsonTokenizer(json, 'huggingFace', {
        endTokens: endTokensOf(modelFiles),
        cpuSeconds: place.tokenizerCpuSeconds,
      });
}

async function readModelFiles(place: ModelPlace): Promise<ModelFiles> {
  const files: { -readonly [Name in keyof ModelFiles]: ModelFiles[Name] } = {};
  for (const name of modelFileNames) {
    const text = await readText(place, name, modelFileBytesMax);
    if (text !== null) files[name] = text;
  }
  for (const name of await chatTemplateNames(place)) {
    const text = await readText(place, name, chatTemplateBytesMax);
    if (text !== null) files[name] = text;
  }
  return files;
}

/** Names only: each file is opened like any other. */
async function chatTemplateNames({ folder, beneath }: ModelPlace): Promise<ChatTemplateName[]> {
  let path = join(folder, chatTemplatesFolder);
  try {
    if (beneath !== null) {
      const opened = await openBeneath(beneath, path);
      await opened.handle.close();
      ({ path } = opened);
    }
    const names = (await readdir(path))
      .map((name): ChatTemplateName => `${chatTemplatesFolder}/${name}`)
      .filter((name) => chatTemplatePattern.test(name));
    if (names.length <= chatTemplatesMax) return names.sort();
    throw new ModelFolderInvalid(
      chatTemplatesFolder,
      `at most ${chatTemplatesMax} templates`,
      `${names.length}`,
    );
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (error instanceof ModelFolderInvalid) throw error;
    if (code === 'ENOENT') return [];
    if (isDiskFault(error)) throw error;
    throw new ModelFolderInvalid(chatTemplatesFolder, 'a readable folder', code ?? message);
  }
}

/** Largest index or tokenizer; the largest in use have about 30 MiB. */
const textBytesMax = 64 * 2 ** 20;

/** Null if there is no such file. */
async function readText(place: ModelPlace, name: string, bytesMax = textBytesMax): Promise<string | null> {
  const expected = `a regular file of at most ${bytesMax} bytes`;
  let handle: FileHandle;
  try {
    handle = await openIn(place, name);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return null;
    if (isDiskFault(error)) throw error;
    throw new ModelFolderInvalid(name, expected, code ?? message);
  }
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw new ModelFolderInvalid(name, expected, 'a folder, pipe or device');
    if (stats.size > bytesMax) throw new ModelFolderInvalid(name, expected, `${stats.size} bytes`);
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}
