import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tokenizerFile } from '../data/prepareDataset.js';
import { endOfTextToken } from '../data/trainBpe.js';
import { engineVersion } from '../engineVersion.js';
import type { Llama } from '../model/llama.js';
import { transpose, weightShapes } from '../model/weights.js';
import type { WeightType } from '../plan/runSpec.js';
import type { TrainingRun } from '../training/trainingRun.js';
import { syncFolder, writeNewFile, type FileDigest } from './durableFile.js';
import type { StoredType } from './halfFloats.js';
import { formatLlamaConfig } from '../plan/llamaConfigFile.js';
import { writeSafetensors, type TensorSource } from './safetensors.js';
import { specHash } from './specHash.js';

/** `relora_manifest.json` of an exported model: what is in the folder and where it comes from. */
export interface ExportManifest {
  formatVersion: 1;
  engineVersion: string;
  weightType: WeightType;
  /** Largest absolute difference between a weight as trained and as stored. */
  castErrorMax: number;
  lineage: {
    specSha256: string;
    datasetSha256: string;
    step: number;
    restartCount: number;
    trainedTokens: number;
  };
  files: FileDigest[];
}

/**
 * Writes the model as it is now, adapters merged into it, in the layout that Hugging Face and everything after it loads: into
 * a new folder, each file synced. The run is not disturbed: merged weights are made one layer at a time and dropped.
 * Throws MergeNotFinite, or SafetensorsInvalid where a weight does not fit the type.
 */
export async function exportMergedModel(
  run: TrainingRun,
  folder: string,
  { weightType }: { weightType: WeightType },
): Promise<{ files: FileDigest[] }> {
  const { model, dataset, progress } = run;
  await mkdir(folder);
  const write = (name: string, content: string) => writeNewFile(join(folder, name), content);

  const { endOfTextId } = dataset.tokenizer;
  const fileName = 'model.safetensors';
  const { castErrorMax, ...digest } = await writeSafetensors(
    join(folder, fileName),
    mergedWeights(model, storedTypes[weightType]),
  );
  const tokenizerJson = await readFile(join(dataset.folder, tokenizerFile), 'utf8');
  const files: FileDigest[] = [
    { fileName, ...digest },
    await write('config.json', formatLlamaConfig(model.config, { weightType, endOfTextId })),
    await write(
      'generation_config.json',
      `${JSON.stringify({ bos_token_id: endOfTextId, eos_token_id: endOfTextId }, null, 2)}\n`,
    ),
    await write('tokenizer.json', tokenizerJson),
    await write(
      'tokenizer_config.json',
      tokenizerConfig(tokenizerJson, endOfTextId, model.config.maxPositionEmbeddings),
    ),
  ];
  const manifest: ExportManifest = {
    formatVersion: 1,
    engineVersion,
    weightType,
    castErrorMax,
    lineage: {
      specSha256: specHash(run.spec),
      datasetSha256: dataset.manifestSha256,
      step: progress.nextStep,
      restartCount: progress.restartCount,
      trainedTokens: progress.trainedTokens,
    },
    files,
  };
  const written = await write('relora_manifest.json', `${JSON.stringify(manifest, null, 2)}\n`);
  await syncFolder(folder);
  return { files: [...files, written] };
}

const storedTypes: Record<WeightType, StoredType> = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' };

function mergedWeights(model: Llama, dtype: StoredType): TensorSource[] {
  const layers = new Map(model.layers.map((layer) => [layer.weight.name, layer]));
  return weightShapes(model.config).map(({ name, shape }) => {
    const layer = layers.get(name);
    if (layer === undefined) {
      return {
        name,
        shape,
        dtype,
        read: async () => (await model.parameters.get(name)!.variable.data()) as Float32Array,
      };
    }
    const { inFeatures, outFeatures } = layer;
    // In memory [in, out], in the file [out, in].
    const read = () => transpose(model.mergedWeight(layer), inFeatures, outFeatures);
    return { name, shape: [outFeatures, inFeatures], dtype, read };
  });
}

function tokenizerConfig(tokenizerJson: string, endOfTextId: number, positionsMax: number): string {
  const { added_tokens: added = [] } = JSON.parse(tokenizerJson) as {
    added_tokens?: { id: number; content: string }[];
  };
  const endOfText = added.find(({ id }) => id === endOfTextId)?.content ?? endOfTextToken;
  const content = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: endOfText,
    eos_token: endOfText,
    model_max_length: positionsMax,
    clean_up_tokenization_spaces: false,
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}
