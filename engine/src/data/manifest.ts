import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDiskFault } from '../io/diskFault.js';
import { DataError, describeValue } from './dataErrors.js';
import type { SkippedRow } from './invalidRows.js';

/** Content of a prepared data set; written last, so its presence shows that the data set is complete. */
export interface DatasetManifest {
  /** 2 if tokens have masks, which engines of format 1 would ignore. */
  formatVersion: 1 | 2;
  tokenizer: TokenizerEntry;
  /** 2 or 4; tokens are little-endian unsigned integers. */
  tokenBytes: number;
  train: SplitEntry;
  heldOut: SplitEntry;
  sources: { name: string; sizeBytes: number; sha256: string }[];
  /** Invalid rows that were left out as requested; absent if there are none. */
  skipped?: { rows: number; of: number; first: SkippedRow[] };
  /** Fraction of the text that the tokenizer does not know, and the first document with such text; absent below 1 %. */
  unknown?: { share: number; first: { file: string; document: number } };
}

export interface TokenizerEntry {
  kind: 'bytes' | 'trainedBpe' | 'huggingFace';
  vocabularySize: number;
  endOfTextId: number;
  /** SHA-256 of tokenizer.json. */
  sha256: string;
}

export interface SplitEntry {
  tokens: number;
  documents: number;
  /** UTF-8 bytes of text, without additions by the tokenizer. */
  bytes: number;
  /** How much of it is to be learned; only in format 2, otherwise everything is. */
  trained?: { tokens: number; bytes: number };
  /** Documents left out of the training part because a held-out one has the same text; absent if there are none. */
  duplicates?: number;
  /** End-of-text tokens within chats; only in data sets prepared before `ends` existed. */
  endsWithin?: number;
  shards: ShardEntry[];
}

export interface ShardEntry {
  file: string;
  tokens: number;
  sha256: string;
  /** One bit per token, lowest first: whether it is to be learned. Only in format 2. */
  mask?: { file: string; sha256: string };
  /**
   * One bit per token, lowest first: whether it ends a document. Only if chats contain the end-of-text token; otherwise each such token
   * ends a document.
   */
  ends?: { file: string; sha256: string };
}

export const manifestFile = 'manifest.json';
export const tokenizerFile = 'tokenizer.json';
/** The held-out text: all documents, concatenated without separators. */
export const heldOutTextFile = 'held-out.txt';
const newestFormatVersion = 2;

/** Reads and checks a manifest, but not its files; throws DataError DATASET_CORRUPT or DATASET_FORMAT_UNKNOWN. */
export async function readManifest(folder: string): Promise<{ manifest: DatasetManifest; sha256: string }> {
  let text: string;
  let manifest: unknown;
  try {
    text = await readFile(join(folder, manifestFile), 'utf8');
  } catch (error) {
    if (isDiskFault(error)) throw error;
    throw corrupt('a readable file', (error as NodeJS.ErrnoException).code ?? 'an error', error);
  }
  try {
    manifest = JSON.parse(text);
  } catch (error) {
    throw corrupt('JSON', `${text.length} characters that are not`, error);
  }
  return { manifest: checkManifest(manifest), sha256: createHash('sha256').update(text).digest('hex') };
}

function checkManifest(value: unknown): DatasetManifest {
  const manifest = object(value, 'a manifest');
  const { formatVersion, tokenBytes } = manifest;
  if (typeof formatVersion !== 'number') throw corrupt('a formatVersion', describeValue(formatVersion));
  if (formatVersion !== 1 && formatVersion !== newestFormatVersion) {
    throw new DataError('DATASET_FORMAT_UNKNOWN', { expected: newestFormatVersion, got: formatVersion });
  }
  const tokenizer = object(manifest.tokenizer, 'tokenizer');
  if (!['bytes', 'trainedBpe', 'huggingFace'].includes(tokenizer.kind as string))
    throw corrupt('a kind of tokenizer', describeValue(tokenizer.kind));
  count(tokenizer.vocabularySize, 'tokenizer.vocabularySize');
  count(tokenizer.endOfTextId, 'tokenizer.endOfTextId');
  text(tokenizer.sha256, /^[0-9a-f]{64}$/, 'tokenizer.sha256');
  if (tokenBytes !== 2 && tokenBytes !== 4) throw corrupt('tokenBytes of 2 or 4', describeValue(tokenBytes));
  const isMasked = formatVersion === 2;
  checkSplit(manifest.train, 'train', isMasked);
  checkSplit(manifest.heldOut, 'heldOut', isMasked);
  return manifest as unknown as DatasetManifest;
}

function checkSplit(value: unknown, name: string, isMasked: boolean): void {
  const split = object(value, name);
  const expected = count(split.tokens, `${name}.tokens`);
  count(split.documents, `${name}.documents`);
  count(split.bytes, `${name}.bytes`);
  if (split.duplicates !== undefined) count(split.duplicates, `${name}.duplicates`);
  if (split.endsWithin !== undefined) count(split.endsWithin, `${name}.endsWithin`);
  if (isMasked) {
    const trained = object(split.trained, `${name}.trained`);
    count(trained.tokens, `${name}.trained.tokens`);
    count(trained.bytes, `${name}.trained.bytes`);
  }
  if (!Array.isArray(split.shards)) throw corrupt(`a list ${name}.shards`, describeValue(split.shards));
  let tokens = 0;
  for (const entry of split.shards as unknown[]) {
    const shard = object(entry, `${name}.shards`);
    // An untrusted name must not lead out of the folder.
    text(shard.file, /^[a-z-]+-\d{5,}\.bin$/, `${name}.shards.file`);
    text(shard.sha256, /^[0-9a-f]{64}$/, `${name}.shards.sha256`);
    if (isMasked) bitFile(shard.mask, 'mask', `${name}.shards.mask`);
    if (shard.ends !== undefined) bitFile(shard.ends, 'ends', `${name}.shards.ends`);
    tokens += count(shard.tokens, `${name}.shards.tokens`);
  }
  if (tokens !== expected) throw corrupt(`${expected} tokens in ${name}.shards`, `${tokens}`);
}

function bitFile(value: unknown, kind: string, name: string): void {
  const { file, sha256 } = object(value, name);
  text(file, new RegExp(`^[a-z-]+-\\d{5,}\\.${kind}$`), `${name}.file`);
  text(sha256, /^[0-9a-f]{64}$/, `${name}.sha256`);
}

function object(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw corrupt(`an object ${name}`, describeValue(value));
  return value as Record<string, unknown>;
}

function count(value: unknown, name: string): number {
  if (!Number.isSafeInteger(value) || (value as number) < 0)
    throw corrupt(`a count ${name}`, describeValue(value));
  return value as number;
}

function text(value: unknown, pattern: RegExp, name: string): void {
  if (typeof value !== 'string' || !pattern.test(value))
    throw corrupt(`${name} like ${pattern.source}`, describeValue(value));
}

function corrupt(expected: string, got: string, cause?: unknown): DataError {
  return new DataError('DATASET_CORRUPT', { file: manifestFile, expected, got }, { cause });
}
