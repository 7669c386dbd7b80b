import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { transpose, weightShapes } from '../model/weights.js';
import type { AdapterSettings, TargetModule, WeightType } from '../plan/runSpec.js';
import { syncFolder, writeNewFile } from '../io/durableFile.js';
import { writeSafetensors, type TensorSource } from '../io/safetensors.js';
import { ExportImpossible } from './exportImpossible.js';
import type { WrittenExport } from './exportManifest.js';
import { storedTypes, writeHuggingFace } from './huggingFace.js';
import { moduleOf, type AdapterFactors, type WeightSource } from './weightSource.js';

/** Folder of the base within the export. */
const baseFolder = 'base';

/**
 * Writes the adapters of the present cycle for PEFT, and the base they belong to in Hugging Face layout: the frozen weights including all
 * merges of earlier cycles, and embedding, norms and head as they are now. Throws ExportImpossible for a model without adapters.
 */
export async function writePeft(
  source: WeightSource,
  folder: string,
  options: { weightType: WeightType; shardBytesMax: number },
): Promise<WrittenExport> {
  const { adapter, lineage } = source;
  if (adapter === null)
    throw new ExportImpossible(
      'PEFT',
      'a model with adapters',
      `the full-rank phase at step ${lineage.step}`,
    );
  const dtype = storedTypes[options.weightType];
  const { tensors, ranks } = await adapterTensors(source, adapter);
  const fileName = 'adapter_model.safetensors';
  const { castErrorMax, ...digest } = await writeSafetensors(
    join(folder, fileName),
    tensors.map((tensor) => ({ ...tensor, dtype })),
  );
  const config = await writeNewFile(join(folder, 'adapter_config.json'), adapterConfig(adapter, ranks));

  await mkdir(join(folder, baseFolder));
  const base = await writeHuggingFace(source, join(folder, baseFolder), { ...options, isMerged: false });
  await syncFolder(join(folder, baseFolder));
  return {
    castErrorMax: Math.max(castErrorMax, base.castErrorMax),
    files: [
      { fileName, ...digest, dtype },
      config,
      ...base.files.map((file) => ({ ...file, fileName: `${baseFolder}/${file.fileName}` })),
    ],
  };
}

/** The tensors of all adapters, each read when its turn comes, and rank and scale of each module. */
async function adapterTensors(
  source: WeightSource,
  settings: AdapterSettings,
): Promise<{
  tensors: Omit<TensorSource, 'dtype'>[];
  ranks: Map<TargetModule, Pick<AdapterFactors, 'rank' | 'scale'>>;
}> {
  const tensors: Omit<TensorSource, 'dtype'>[] = [];
  const ranks = new Map<TargetModule, Pick<AdapterFactors, 'rank' | 'scale'>>();
  for (const { name, role, shape } of weightShapes(source.config)) {
    const layer = name.replace(/\.weight$/, '');
    const factors = role === 'base' ? await source.factors(layer) : null;
    if (factors === null) continue;
    const [inFeatures, outFeatures] = shape as [number, number];
    const { rank, scale } = factors;
    ranks.set(moduleOf(layer), { rank, scale });
    const prefix = `base_model.model.${layer}`;
    tensors.push(
      {
        name: `${prefix}.lora_A.weight`,
        shape: [rank, inFeatures],
        read: async () => transpose((await source.factors(layer))!.a, inFeatures, rank),
      },
      {
        name: `${prefix}.lora_B.weight`,
        shape: [outFeatures, rank],
        async read() {
          const { b } = (await source.factors(layer))!;
          // PEFT has no scale per layer: a trainable one is multiplied into B, and the constant one becomes 1.
          const scaled = settings.trainableScale ? b.map((value) => value * scale) : b;
          return transpose(scaled, rank, outFeatures);
        },
      },
    );
  }
  return { tensors, ranks };
}

/** PEFT scales a module by lora_alpha / r; both can be set per module by patterns. */
function adapterConfig(
  settings: AdapterSettings,
  ranks: ReadonlyMap<TargetModule, Pick<AdapterFactors, 'rank' | 'scale'>>,
): string {
  const alphaOf = ({ rank, scale }: Pick<AdapterFactors, 'rank' | 'scale'>): number => {
    if (settings.trainableScale) return rank;
    // The configured alpha if possible, since scale * rank may round.
    return scale === settings.alpha / rank ? settings.alpha : scale * rank;
  };
  const [first] = ranks.values();
  const alpha = alphaOf(first!);
  const others = [...ranks].filter(([, entry]) => entry.rank !== first!.rank);
  const otherAlphas = [...ranks].filter(([, entry]) => alphaOf(entry) !== alpha);
  const content = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: baseFolder,
    inference_mode: true,
    r: first!.rank,
    lora_alpha: alpha,
    lora_dropout: settings.dropout,
    target_modules: [...ranks.keys()],
    rank_pattern: Object.fromEntries(others.map(([module, { rank }]) => [module, rank])),
    alpha_pattern: Object.fromEntries(otherAlphas.map(([module, entry]) => [module, alphaOf(entry)])),
    use_rslora: false,
    use_dora: false,
    bias: 'none',
    fan_in_fan_out: false,
    init_lora_weights: true,
    modules_to_save: null,
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}
