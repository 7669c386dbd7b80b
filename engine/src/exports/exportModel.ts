import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExportFormat, GgufType } from '../plan/runSpec.js';
import { syncFolder, writeNewFile } from '../io/durableFile.js';
import { ExportImpossible } from './exportImpossible.js';
import { manifestText, type ExportedFile, type WrittenExport } from './exportManifest.js';
import { writeGguf } from './gguf.js';
import { writeHuggingFace } from './huggingFace.js';
import { writePeft } from './peft.js';
import type { WeightSource } from './weightSource.js';

export interface ExportOptions {
  format: ExportFormat;
  /** q8_0 only for GGUF. */
  weightType: GgufType;
  /** Largest weights file in Hugging Face layout, in bytes; a larger tensor gets a file of its own. */
  shardBytesMax: number;
  /** Resource name of the job, for the manifest. */
  job: string | null;
}

export interface ExportedModel {
  /** The manifest comes last. */
  files: ExportedFile[];
  castErrorMax: number;
}

/**
 * Writes a model into a new folder, every file synced, with a manifest of size, SHA-256 and origin. One layer's weights are in memory at a
 * time. Throws ExportImpossible if the format cannot represent the model, MergeNotFinite, or SafetensorsInvalid if a weight does not fit
 * the type.
 */
export async function exportModel(
  source: WeightSource,
  folder: string,
  { format, weightType, shardBytesMax, job }: ExportOptions,
): Promise<ExportedModel> {
  await mkdir(folder);
  const written = await write();
  const manifest = manifestText(format, weightType, { job, ...source.lineage }, written);
  const last = await writeNewFile(join(folder, 'relora_manifest.json'), manifest);
  await syncFolder(folder);
  return { files: [...written.files, last], castErrorMax: written.castErrorMax };

  async function write(): Promise<WrittenExport> {
    if (format === 'gguf') return await writeGguf(source, folder, weightType);
    if (weightType === 'q8_0')
      throw new ExportImpossible('weight type', 'float32, float16 or bfloat16 outside of GGUF', 'q8_0');
    return format === 'peft'
      ? await writePeft(source, folder, { weightType, shardBytesMax })
      : await writeHuggingFace(source, folder, { weightType, shardBytesMax, isMerged: true });
  }
}
