import { mkdir, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { digestFile, syncFolder, publish, writeNewFile } from '../io/durableFile.js';
import { DataError } from './dataError.js';
import { countDocuments, divide, placedPieces, type Division, type DocumentOptions } from './documents.js';
import { defaultLimits, type DataLimits } from './limits.js';
import { manifestFile, type DatasetManifest, type SplitEntry } from './manifest.js';
import { hashToUnit } from './permutation.js';
import { ShardWriter } from './shardWriter.js';
import { openSource, type SourceFile } from './sourceFile.js';
import { bytesTokenizer, jsonTokenizer, type Tokenizer } from './tokenizer.js';
import { trainBpe } from './trainBpe.js';

export interface PrepareOptions {
  files: readonly SourceFile[];
  /** Folder to make; must not exist. */
  outputFolder: string;
  tokenizer: { kind: 'bytes' } | { kind: 'trainedBpe'; vocabularySize: number } | { kind: 'huggingFace'; tokenizerJson: string };
  textField: string;
  /** 0 to 0.5. */
  heldOutShare: number;
  seed: number;
  limits?: Partial<DataLimits>;
}

export const heldOutTextFile = 'held-out.txt';
export const tokenizerFile = 'tokenizer.json';

/**
 * Reads, divides and tokenizes text into shards that are read by position. The same files and options give the same bytes.
 * Two passes: the first counts the documents and gathers what a vocabulary is trained on, the second writes. Throws
 * DataError; then the folder is not complete and has no manifest.
 * @param onProgress share done, 0 to 1
 */
export async function prepareDataset(
  options: PrepareOptions, onProgress: (share: number) => void, signal: AbortSignal,
): Promise<DatasetManifest> {
  const limits = { ...defaultLimits, ...options.limits };
  const documents: DocumentOptions = { ...options, limits };
  const folder = options.outputFolder;
  await mkdir(folder, { recursive: false });

  const sources: DatasetManifest['sources'] = [];
  let totalBytes = 0;
  for (const file of options.files) {
    const { handle, sizeBytes } = await openSource(file);
    await handle.close();
    totalBytes += sizeBytes;
    sources.push({ name: file.name, sizeBytes, sha256: (await digestFile(file.path)).sha256 });
  }
  const progress = progressOver(2 * Math.max(1, totalBytes), onProgress, signal);

  const { division, samplePath } = await firstPass(documents, folder, totalBytes, progress);
  const tokenizer = await makeTokenizer(options.tokenizer, samplePath, folder);
  await rm(samplePath, { force: true });

  const { train, heldOut, tokenBytes } = await writeSplits(documents, division, tokenizer, folder, progress);
  if (train.tokens === 0) throw new DataError('DATASET_EMPTY', 'The training part has no text');

  const manifest: DatasetManifest = {
    formatVersion: 1,
    tokenizer: {
      kind: tokenizer.kind,
      vocabularySize: tokenizer.vocabularySize,
      endOfTextId: tokenizer.endOfTextId,
      sha256: tokenizer.kind === 'bytes' ? '' : (await digestFile(join(folder, tokenizerFile))).sha256,
    },
    tokenBytes,
    train,
    heldOut,
    sources,
  };
  await writeNewFile(join(folder, `${manifestFile}.tmp`), `${JSON.stringify(manifest, null, 2)}\n`);
  await publish(join(folder, `${manifestFile}.tmp`), join(folder, manifestFile));
  await syncFolder(folder);
  onProgress(1);
  return manifest;
}

/** Finds the division; for a trained vocabulary also writes the sample, training text only. */
async function firstPass(
  options: DocumentOptions, folder: string, totalBytes: number, progress: (bytes: number) => void,
): Promise<{ division: Division; samplePath: string }> {
  const samplePath = join(folder, '.sample.txt');
  const counted = await countDocuments(options, ({ text }) => progress(Buffer.byteLength(text)));
  const division = divide(options, counted);

  const share = Math.min(1, options.limits.bpeSampleBytesMax / Math.max(1, totalBytes));
  const sample = await open(samplePath, 'wx');
  try {
    let index = 0;
    for await (const { text, split } of placedPieces(options, division)) {
      if (split === 'train' && hashToUnit(options.seed, index++) < share) await sample.writeFile(`${text}\n`);
    }
  } finally {
    await sample.close();
  }
  return { division, samplePath };
}

async function makeTokenizer(spec: PrepareOptions['tokenizer'], samplePath: string, folder: string): Promise<Tokenizer> {
  if (spec.kind === 'bytes') return bytesTokenizer();
  let json: string;
  if (spec.kind === 'huggingFace') {
    json = spec.tokenizerJson;
  } else {
    const scratch = join(folder, '.trained.json');
    if ((await readFile(samplePath)).length === 0) throw new DataError('DATASET_EMPTY', 'The training part has no text');
    json = await trainBpe(samplePath, spec.vocabularySize, scratch);
    await rm(scratch, { force: true });
  }
  const tokenizer = jsonTokenizer(json, spec.kind);
  await writeNewFile(join(folder, tokenizerFile), json);
  return tokenizer;
}

async function writeSplits(
  options: DocumentOptions, division: Division, tokenizer: Tokenizer, folder: string, progress: (bytes: number) => void,
): Promise<{ train: SplitEntry; heldOut: SplitEntry; tokenBytes: number }> {
  const tokenBytes = tokenizer.vocabularySize <= 65_536 ? 2 : 4;
  const parts = {
    train: { writer: new ShardWriter(folder, 'train', tokenBytes, options.limits.shardTokensMax), documents: 0, bytes: 0 },
    heldOut: { writer: new ShardWriter(folder, 'held-out', tokenBytes, options.limits.shardTokensMax), documents: 0, bytes: 0 },
  };
  const heldOutText = await open(join(folder, heldOutTextFile), 'wx');
  try {
    for await (const { text, split, isLast } of placedPieces(options, division)) {
      const part = parts[split];
      const bytes = Buffer.byteLength(text);
      progress(bytes);
      part.bytes += bytes;
      await part.writer.write(await tokenizer.encode(text));
      if (split === 'heldOut') await heldOutText.writeFile(text);
      if (!isLast) continue;
      part.documents++;
      await part.writer.write([tokenizer.endOfTextId]);
    }
    await heldOutText.sync();
    const entry = async ({ writer, documents, bytes }: (typeof parts)['train']): Promise<SplitEntry> => {
      const shards = await writer.end();
      return { tokens: shards.reduce((sum, shard) => sum + shard.tokens, 0), documents, bytes, shards };
    };
    return { train: await entry(parts.train), heldOut: await entry(parts.heldOut), tokenBytes };
  } finally {
    await heldOutText.close();
    await parts.train.writer.abandon();
    await parts.heldOut.writer.abandon();
  }
}

function progressOver(total: number, onProgress: (share: number) => void, signal: AbortSignal): (bytes: number) => void {
  let done = 0;
  let told = 0;
  return (bytes) => {
    signal.throwIfAborted();
    done += bytes;
    const share = Math.min(0.99, done / total);
    if (share - told < 0.01) return;
    told = share;
    onProgress(share);
  };
}
