import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '../device/device.js';
import { tokenizerFile } from '../data/manifest.js';
import type { Tokenizer } from '../data/tokenizer.js';
import { weightShapes } from '../model/weights.js';
import { CheckpointCorrupt } from '../training/checkpointErrors.js';
import { checkpointFilePath, verifyCheckpoint, type CheckpointFile } from '../training/checkpointManifest.js';
import { openSafetensors, type SafetensorsFile } from '../io/safetensors.js';
import { mergeFactors } from './mergeFactors.js';
import { scaleOf, type AdapterFactors, type WeightSource } from './weightSource.js';

/** Tokenizer of the data set that a checkpoint was trained on, and the folder with its file. */
export interface TokenizerFolder {
  folder: string;
  tokenizer: Tokenizer;
}

/**
 * Calls `use` with the weights of a checkpoint, read from its files one tensor at a time, so that no whole model is in memory. The
 * checkpoint is verified first; throws CheckpointCorrupt.
 */
export async function withCheckpointWeights<T>(
  device: Device,
  path: string,
  { folder, tokenizer }: TokenizerFolder,
  expected: { manifestSha256?: string },
  use: (source: WeightSource) => Promise<T>,
): Promise<T> {
  const { manifest } = await verifyCheckpoint(path, expected);
  const { adapter, progress, model: config } = manifest;
  const shapes = new Map(weightShapes(config).map((weight) => [weight.name, weight]));
  const opened = new Map<CheckpointFile, SafetensorsFile>();
  const read = async (file: CheckpointFile, name: string): Promise<Float32Array> => {
    const tensors = opened.get(file)!;
    if (!tensors.tensors.has(name))
      throw new CheckpointCorrupt(path, `${file}.safetensors`, `a file with the tensor ${name}`, 'without');
    return await tensors.readFloat32(name);
  };
  const weight = (name: string) => read(shapes.get(name)!.role === 'base' ? 'base' : 'shared', name);
  const factors = async (layer: string): Promise<AdapterFactors | null> => {
    const file = opened.get('adapters');
    if (file === undefined || !file.tensors.has(`${layer}.lora_A`)) return null;
    const g = file.tensors.has(`${layer}.lora_scale`)
      ? (await read('adapters', `${layer}.lora_scale`))[0]!
      : null;
    return {
      rank: file.tensors.get(`${layer}.lora_A`)!.shape[1]!,
      a: await read('adapters', `${layer}.lora_A`),
      b: await read('adapters', `${layer}.lora_B`),
      scale: scaleOf(adapter!, layer, g),
    };
  };
  try {
    const names = ['base', 'shared', ...(adapter === null ? [] : (['adapters'] as const))] as const;
    for (const name of names)
      opened.set(name, await openSafetensors(checkpointFilePath(path, manifest.files[name]!)));
    return await use({
      config,
      adapter,
      lineage: {
        specSha256: manifest.specSha256,
        datasetSha256: manifest.datasetSha256,
        step: progress.nextStep,
        cycle: adapter === null ? null : progress.restartCount + 1,
        restartCount: progress.restartCount,
        trainedTokens: progress.trainedTokens,
      },
      tokenizerJson: await readFile(join(folder, tokenizerFile), 'utf8'),
      endOfTextId: tokenizer.endOfTextId,
      modelFiles: manifest.modelFiles ?? {},
      weight,
      factors,
      async merged(name) {
        const layer = name.replace(/\.weight$/, '');
        const found = await factors(layer);
        const w = await weight(name);
        return found === null
          ? w
          : await mergeFactors(device, layer, shapes.get(name)!.shape as [number, number], w, found);
      },
    });
  } finally {
    await Promise.all([...opened.values()].map((file) => file.close()));
  }
}
