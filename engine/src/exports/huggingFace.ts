import { mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { transpose, weightShapes } from '../model/weights.js';
import { formatLlamaConfig } from '../plan/llamaConfigFile.js';
import type { WeightType } from '../plan/runSpec.js';
import { syncFolder, writeNewFile } from '../io/durableFile.js';
import { storedTypes as typeBytes, type StoredType } from '../io/halfFloats.js';
import { writeSafetensors, type TensorSource } from '../io/safetensors.js';
import { companionFiles, tokenIdsOf } from './companionFiles.js';
import type { ExportedFile, WrittenExport } from './exportManifest.js';
import type { WeightSource } from './weightSource.js';

export interface HuggingFaceOptions {
  weightType: WeightType;
  shardBytesMax: number;
  /** With adapters merged into the weights, or the base of the present cycle without them. */
  isMerged: boolean;
}

export const storedTypes: Record<WeightType, StoredType> = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
};

/** Writes the model into an existing folder in Hugging Face layout. */
export async function writeHuggingFace(
  source: WeightSource,
  folder: string,
  options: HuggingFaceOptions,
): Promise<WrittenExport> {
  const { config, tokenizerJson } = source;
  const { weightType } = options;
  const write = (name: string, content: string) => writeNewFile(join(folder, name), content);
  const weights = await writeWeights(source, folder, options);
  const files = [
    ...weights.files,
    await write('config.json', formatLlamaConfig(config, { weightType, tokenIds: tokenIdsOf(source) })),
    await write('tokenizer.json', tokenizerJson),
  ];
  const inFolders = new Set<string>();
  for (const [name, text] of companionFiles(source)) {
    const inFolder = dirname(join(folder, name));
    if (inFolder !== folder) inFolders.add(inFolder);
    await mkdir(inFolder, { recursive: true });
    files.push({ ...(await write(name, text)), fileName: name });
  }
  for (const path of inFolders) await syncFolder(path);
  return { castErrorMax: weights.castErrorMax, files };
}

async function writeWeights(
  source: WeightSource,
  folder: string,
  { weightType, shardBytesMax, isMerged }: HuggingFaceOptions,
): Promise<{ files: ExportedFile[]; castErrorMax: number }> {
  const dtype = storedTypes[weightType];
  const shards = inShards(tensorsOf(source, dtype, isMerged), shardBytesMax);
  const nameOf = (index: number): string =>
    shards.length === 1
      ? 'model.safetensors'
      : `model-${padded(index + 1)}-of-${padded(shards.length)}.safetensors`;
  const files: ExportedFile[] = [];
  let castErrorMax = 0;
  for (const [index, tensors] of shards.entries()) {
    const fileName = nameOf(index);
    const { castErrorMax: error, ...digest } = await writeSafetensors(join(folder, fileName), tensors);
    castErrorMax = Math.max(castErrorMax, error);
    files.push({ fileName, ...digest, dtype });
  }
  if (shards.length > 1) {
    const index = {
      metadata: { total_size: shards.flat().reduce((sum, tensor) => sum + bytesOf(tensor), 0) },
      weight_map: Object.fromEntries(
        shards.flatMap((tensors, index) => tensors.map(({ name }) => [name, nameOf(index)])),
      ),
    };
    const text = `${JSON.stringify(index, null, 2)}\n`;
    files.push(await writeNewFile(join(folder, 'model.safetensors.index.json'), text));
  }
  return { files, castErrorMax };
}

/** The model's weights in the files' layout; merged, or without their adapters. */
export function tensorsOf(
  source: Pick<WeightSource, 'config' | 'weight' | 'merged'>,
  dtype: StoredType,
  isMerged: boolean,
): TensorSource[] {
  return weightShapes(source.config).map(({ name, role, shape }) => {
    if (role !== 'base') return { name, shape, dtype, read: () => source.weight(name) };
    // In memory [in, out], in the file [out, in].
    const [inFeatures, outFeatures] = shape as [number, number];
    const values = () => (isMerged ? source.merged(name) : source.weight(name));
    const read = async () => transpose(await values(), inFeatures, outFeatures);
    return { name, shape: [outFeatures, inFeatures], dtype, read };
  });
}

/** In order; a new shard begins if the next tensor would make the current one too large. */
function inShards(tensors: readonly TensorSource[], bytesMax: number): TensorSource[][] {
  const shards: TensorSource[][] = [[]];
  let bytes = 0;
  for (const tensor of tensors) {
    if (bytes > 0 && bytes + bytesOf(tensor) > bytesMax) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)!.push(tensor);
    bytes += bytesOf(tensor);
  }
  return shards;
}

function bytesOf({ shape, dtype }: TensorSource): number {
  return shape.reduce((product, size) => product * size, typeBytes[dtype]);
}

function padded(number: number): string {
  return String(number).padStart(5, '0');
}
