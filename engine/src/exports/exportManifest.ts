import { engineVersion } from '../engineVersion.js';
import type { ExportFormat, GgufType } from '../plan/runSpec.js';
import type { FileDigest } from '../io/durableFile.js';
import type { Lineage } from './weightSource.js';

/** A file of an export; its name may stand in folders, `base/config.json`. */
export interface ExportedFile extends FileDigest {
  /** Type of the tensors in it, in the words of its format; absent for files without tensors. */
  dtype?: string;
}

/** `relora_manifest.json` of an export: what is in the folder and where it comes from (docs/interchange.md). */
export interface ExportManifest {
  formatVersion: 2;
  engineVersion: string;
  format: ExportFormat;
  weightType: GgufType;
  /** Largest absolute difference between a weight as trained and as stored. */
  castErrorMax: number;
  lineage: Lineage;
  /** Weights, not norms and biases, that the chosen type cannot hold, and what they are stored in instead. */
  exceptions: { tensor: string; dtype: string; reason: string }[];
  /** Of GGUF: the rule that llama.cpp cuts words by, and whether it is that of the tokenizer or the nearest one. */
  tokenizer: { preTokenizer: string; isExact: boolean } | null;
  files: ExportedFile[];
}

/** What a format wrote. */
export interface WrittenExport {
  files: ExportedFile[];
  castErrorMax: number;
  exceptions?: ExportManifest['exceptions'];
  tokenizer?: ExportManifest['tokenizer'];
}

export function manifestText(
  format: ExportFormat,
  weightType: GgufType,
  lineage: Lineage,
  { files, castErrorMax, exceptions = [], tokenizer = null }: WrittenExport,
): string {
  const manifest: ExportManifest = {
    formatVersion: 2,
    engineVersion,
    format,
    weightType,
    castErrorMax,
    lineage,
    exceptions,
    tokenizer,
    files,
  };
  return `${JSON.stringify(manifest, null, 2)}\n`;
}
