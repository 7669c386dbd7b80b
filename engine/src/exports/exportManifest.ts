import { engineVersion } from '../engineVersion.js';
import type { ExportFormat, GgufType } from '../plan/runSpec.js';
import type { FileDigest } from '../io/durableFile.js';
import type { Lineage } from './weightSource.js';

/** A file of an export; its name may contain folders, `base/config.json`. */
export interface ExportedFile extends FileDigest {
  /** Type of its tensors, in the terms of its format; absent for files without tensors. */
  dtype?: string;
}

/** `relora_manifest.json` of an export: the folder's files and where they come from (docs/interchange.md). */
export interface ExportManifest {
  formatVersion: 2;
  engineVersion: string;
  format: ExportFormat;
  weightType: GgufType;
  /** Largest absolute difference between a trained weight and its stored value. */
  castErrorMax: number;
  lineage: Lineage;
  /** Weights (not norms or biases) that the chosen type cannot represent, and the type used instead. */
  exceptions: { tensor: string; dtype: string; reason: string }[];
  /** For GGUF: the rule by which llama.cpp splits words, and whether it equals that of the tokenizer or is the nearest one. */
  tokenizer: { preTokenizer: string; isExact: boolean } | null;
  files: ExportedFile[];
}

/** Result of writing a format. */
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
