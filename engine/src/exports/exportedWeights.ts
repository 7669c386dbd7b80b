import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { Device } from '../device/device.js';
import { openSafetensors } from '../io/safetensors.js';
import { withFolderWeights } from '../model/modelFolder.js';
import { transpose, type WeightShape } from '../model/weights.js';
import { headSize } from '../plan/parameters.js';
import type { ExportFormat, GgufType, LlamaConfig } from '../plan/runSpec.js';
import { ExportDiffers } from './exportDiffers.js';
import { formOf, ggufFileName, ggufName, modelMetadata, ropeFactors, tensorTypes } from './gguf.js';
import { mergeFactors } from './mergeFactors.js';
import { GgufInvalid, openGguf, type OpenGguf } from './readGguf.js';
import { moduleOf } from './weightSource.js';

/** Reads a weight with the values that users of the export compute with; linear ones [in, out]. */
export type WeightReader = (weight: WeightShape) => Promise<Float32Array>;

/**
 * Calls `use` with the weights stored in an export's files, one at a time. Throws ExportDiffers if the files give the model another shape,
 * and the errors of reading them.
 */
export async function withExportedWeights<T>(
  device: Device,
  folder: string,
  { format, weightType }: { format: ExportFormat; weightType: GgufType },
  config: LlamaConfig,
  use: (read: WeightReader) => Promise<T>,
): Promise<T> {
  if (format === 'gguf') return await withGguf(folder, weightType, config, use);
  if (format === 'peft') return await withPeft(device, folder, config, use);
  return await withFolderWeights(folder, async (found, read) => {
    requireConfig(config, found);
    return await use(read);
  });
}

/** PEFT computes with the base plus B A times the scale of the module, which gives the same sum. */
async function withPeft<T>(
  device: Device,
  folder: string,
  config: LlamaConfig,
  use: (read: WeightReader) => Promise<T>,
): Promise<T> {
  const settings = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8')) as {
    r: number;
    lora_alpha: number;
    rank_pattern: Partial<Record<string, number>>;
    alpha_pattern: Partial<Record<string, number>>;
    base_model_name_or_path: string;
  };
  const adapters = await openSafetensors(join(folder, 'adapter_model.safetensors'));
  try {
    return await withFolderWeights(
      join(folder, settings.base_model_name_or_path),
      async (found, readBase) => {
        requireConfig(config, found);
        return await use(async (weight) => {
          const base = await readBase(weight);
          const layer = weight.name.replace(/\.weight$/, '');
          const prefix = `base_model.model.${layer}`;
          if (!adapters.tensors.has(`${prefix}.lora_A.weight`)) return base;
          const module = moduleOf(layer);
          const rank = settings.rank_pattern[module] ?? settings.r;
          const alpha = settings.alpha_pattern[module] ?? settings.lora_alpha;
          const [inFeatures, outFeatures] = weight.shape as [number, number];
          const [a, b] = [
            transpose(await adapters.readFloat32(`${prefix}.lora_A.weight`), rank, inFeatures),
            transpose(await adapters.readFloat32(`${prefix}.lora_B.weight`), outFeatures, rank),
          ];
          return await mergeFactors(device, layer, [inFeatures, outFeatures], base, {
            ...{ rank, a, b },
            scale: alpha / rank,
          });
        });
      },
    );
  } finally {
    await adapters.close();
  }
}

async function withGguf<T>(
  folder: string,
  weightType: GgufType,
  config: LlamaConfig,
  use: (read: WeightReader) => Promise<T>,
): Promise<T> {
  const file = await openGguf(join(folder, ggufFileName));
  try {
    await requireModel(file, weightType, config);
    return await use(async (weight) => {
      const values = inOurOrder(config, weight.name, await file.readFloat32(ggufName(weight.name)));
      const [inFeatures, outFeatures] = weight.shape;
      return weight.role === 'base' ? transpose(values, outFeatures!, inFeatures!) : values;
    });
  } finally {
    await file.close();
  }
}

/** A GGUF file's metadata must describe this model, since users compute with it. */
async function requireModel(file: OpenGguf, weightType: GgufType, config: LlamaConfig): Promise<void> {
  for (const [key, { value }] of modelMetadata(config, tensorTypes[weightType])) {
    const found = file.metadata.get(key);
    // GGUF stores real numbers in float32.
    const isAlike = typeof value === 'number' ? found === Math.fround(value) : found === value;
    if (!isAlike) throw new ExportDiffers(`${key} of the file`, String(value), String(found));
  }
  for (const { name, read } of ropeFactors(config)) {
    const expected = Buffer.from(await read());
    const found = await file.readFloat32(name).catch((error: unknown) => {
      if (error instanceof GgufInvalid) return new Float32Array();
      throw error;
    });
    if (!expected.equals(Buffer.from(found.buffer, found.byteOffset, found.byteLength)))
      throw new ExportDiffers(`${name} of the file`, 'the factors of the rotary embedding', 'others');
  }
}

function requireConfig(expected: LlamaConfig, found: LlamaConfig): void {
  for (const key of Object.keys(expected) as (keyof LlamaConfig)[])
    if (!isDeepStrictEqual(expected[key], found[key]))
      throw new ExportDiffers(
        `${key} of config.json`,
        JSON.stringify(expected[key]),
        JSON.stringify(found[key]),
      );
}

/** Rows of queries and keys in Hugging Face's order: the inverse of `inLlamaOrder` of gguf.ts. */
function inOurOrder(config: LlamaConfig, name: string, rows: Float32Array): Float32Array {
  const module = moduleOf(name.replace(/\.(weight|bias)$/, ''));
  if (module !== 'q_proj' && module !== 'k_proj') return rows;
  if (!formOf(config).isInterleaved) return rows;
  const size = headSize(config);
  const rowLength = name.endsWith('.bias') ? 1 : config.hiddenSize;
  const half = size / 2;
  const result = new Float32Array(rows.length);
  for (let row = 0; row < rows.length / rowLength; row++) {
    const place = row % size;
    const target = row - place + (place % 2) * half + Math.floor(place / 2);
    result.set(rows.subarray(row * rowLength, (row + 1) * rowLength), target * rowLength);
  }
  return result;
}
