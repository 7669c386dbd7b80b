import { readFile } from 'node:fs/promises';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { DataError } from './dataError.js';

/** What a prepared data set holds: written last, so its presence says that all of it is there. */
export interface DatasetManifest {
  formatVersion: 1;
  tokenizer: TokenizerEntry;
  /** 2 or 4; tokens are little-endian unsigned integers. */
  tokenBytes: number;
  train: SplitEntry;
  heldOut: SplitEntry;
  sources: { name: string; sizeBytes: number; sha256: string }[];
}

export interface TokenizerEntry {
  kind: 'bytes' | 'trainedBpe' | 'huggingFace';
  vocabularySize: number;
  endOfTextId: number;
  /** Of tokenizer.json; empty for bytes. */
  sha256: string;
}

export interface SplitEntry {
  tokens: number;
  documents: number;
  /** UTF-8 bytes of text, without what the tokenizer adds. */
  bytes: number;
  shards: ShardEntry[];
}

export interface ShardEntry {
  file: string;
  tokens: number;
  sha256: string;
}

export const manifestFile = 'manifest.json';

/** Reads and checks a manifest; throws DataError DATASET_CORRUPT. */
export async function readManifest(folder: string): Promise<{ manifest: DatasetManifest; sha256: string }> {
  const corrupt = (problem: string) => new DataError('DATASET_CORRUPT', `${manifestFile} of the data set ${problem}`);
  let text: string;
  try {
    text = await readFile(join(folder, manifestFile), 'utf8');
  } catch {
    throw corrupt('cannot be read');
  }
  let manifest: DatasetManifest;
  try {
    manifest = JSON.parse(text) as DatasetManifest;
  } catch {
    throw corrupt('is not JSON');
  }
  if (manifest.formatVersion !== 1) throw corrupt(`should have the format version 1, it has ${String(manifest.formatVersion)}`);
  for (const split of [manifest.train, manifest.heldOut]) {
    const tokens = split.shards.reduce((sum, shard) => sum + shard.tokens, 0);
    if (tokens !== split.tokens) throw corrupt(`says ${split.tokens} tokens, its shards have ${tokens}`);
  }
  return { manifest, sha256: createHash('sha256').update(text).digest('hex') };
}
