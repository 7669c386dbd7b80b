import { mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { publish, syncFolder, writeNewFile } from '../io/durableFile.js';
import type { EndTokens } from '../plan/endTokens.js';
import { DataError } from './dataErrors.js';
import { defaultLimits, type DataLimits } from './dataLimits.js';
import {
  divide,
  divider,
  heldOutCandidates,
  piecesOfFile,
  type Division,
  type DocumentOptions,
  type OpenSource,
  type PlacedPiece,
} from './documents.js';
import { FirstDigests, withoutHeldOut, type HeldOutDigests } from './heldOutDigests.js';
import { InvalidRows, type SkipInvalid } from './invalidRows.js';
import { LostText } from './lostText.js';
import { PieceEncoder } from './longText.js';
import { manifestFile, type DatasetManifest } from './manifest.js';
import { checkOptions, pairsHaveFields } from './prepareOptions.js';
import { seededShares } from './permutation.js';
import { RegularFile, type SourceFile } from './regularFile.js';
import { recognizeFormat, type SourceFormat } from './sourceFormat.js';
import { SplitWriter } from './splitWriter.js';
import type { TextPiece } from './textPieces.js';
import { bytesTokenizer, jsonTokenizer, type Tokenizer } from './tokenizer.js';
import { byteLevelTokenizerJson, trainableText, trainBpe } from './trainBpe.js';

export interface PrepareOptions {
  files: readonly SourceFile[];
  /** Folder to make; must not exist. */
  outputFolder: string;
  tokenizer:
    | { kind: 'bytes' }
    | { kind: 'trainedBpe'; vocabularySize: number }
    | { kind: 'huggingFace'; tokenizerJson: string; endTokens?: EndTokens };
  /** Of JSONL lines and Parquet rows. */
  textField: string;
  /** Fields of a prompt and of the completion that alone is to be learned, in place of `textField`. */
  pairFields?: { prompt: string; completion: string };
  /** 0 to 0.5. */
  heldOutShare: number;
  seed: number;
  /** Leaves out rows whose fields cannot be read, up to this; without it the first of them is an error. */
  skipInvalid?: SkipInvalid;
  limits?: Partial<DataLimits>;
}

export interface PreparedFolder {
  manifest: DatasetManifest;
  /** What each source was found to be. */
  formats: SourceFormat[];
}

/** The held-out text, document after document with nothing between them. */
export const heldOutTextFile = 'held-out.txt';
export const tokenizerFile = 'tokenizer.json';

/** Text that is encoded at a time; pieces of it go to the library side by side. */
const batchBytesMax = 4 * 2 ** 20;

/**
 * Reads, divides and tokenizes text into shards that are read by position. The same files and options give the same bytes.
 * The first pass reads everything, counts and checks; a second gathers what a vocabulary is trained on; the last writes.
 * Throws DataError, or the signal's reason; then the folder is not complete and has no manifest.
 * @param onProgress share done, 0 to 1
 */
export async function prepareDataset(
  options: PrepareOptions,
  onProgress: (share: number) => void,
  signal: AbortSignal,
): Promise<PreparedFolder> {
  checkOptions(options);
  const { files, outputFolder: folder, pairFields } = options;
  const documents: DocumentOptions = {
    ...options,
    fields: pairFields ? [pairFields.prompt, pairFields.completion] : [options.textField],
    limits: { ...defaultLimits, ...options.limits },
  };
  await mkdir(folder, { recursive: false });

  const skipInvalid = options.skipInvalid ?? null;
  const first = await firstPass(files, documents, skipInvalid, part(onProgress, 0, 0.2), signal);
  const later = (from: number, to: number): Pass => ({
    ...first,
    files,
    documents,
    skipInvalid,
    progress: part(onProgress, from, to),
    signal,
  });
  const trained = options.tokenizer.kind === 'trainedBpe';
  const json = await tokenizerJson(options.tokenizer, folder, later(0.2, 0.3));
  const tokenizer =
    options.tokenizer.kind === 'bytes'
      ? bytesTokenizer()
      : await jsonTokenizer(json, options.tokenizer.kind, {
          signal,
          isTrusted: trained,
          cpuSeconds: documents.limits.tokenizerCpuSeconds,
          endTokens: options.tokenizer.kind === 'huggingFace' ? options.tokenizer.endTokens : undefined,
        });
  const tokenizerDigest = await writeNewFile(join(folder, tokenizerFile), json);

  const { train, heldOut, tokenBytes } = await writeSplits(
    tokenizer,
    folder,
    later(trained ? 0.4 : 0.2, 0.99),
  );
  const { kind, vocabularySize, endOfTextId } = tokenizer;
  const manifest: DatasetManifest = {
    formatVersion: pairFields ? 2 : 1,
    tokenizer: { kind, vocabularySize, endOfTextId, sha256: tokenizerDigest.sha256 },
    tokenBytes,
    train,
    heldOut,
    sources: first.sources.map(({ name, sizeBytes, sha256 }) => ({ name, sizeBytes, sha256 })),
    // Without any the manifest is what it always was.
    ...(first.skipped === null ? {} : { skipped: first.skipped }),
  };
  // Last, under another name until it is whole: where there is a manifest, everything it names is on the disk.
  await writeNewFile(join(folder, `${manifestFile}.tmp`), `${JSON.stringify(manifest, null, 2)}\n`);
  await syncFolder(folder);
  await publish(join(folder, `${manifestFile}.tmp`), join(folder, manifestFile));
  onProgress(1);
  return { manifest, formats: first.sources.map(({ format }) => format) };
}

interface Source extends Omit<OpenSource, 'file'> {
  name: string;
  sizeBytes: number;
  sha256: string;
  /** Size and time: a file must be the same in every pass. */
  stamp: string;
}

interface FirstPass {
  sources: Source[];
  division: Division;
  /** Null where nothing is held out. */
  digests: HeldOutDigests | null;
  heldOutDocuments: number;
  /** UTF-8 bytes of all text. */
  textBytes: number;
  /** Null for none. */
  skipped: DatasetManifest['skipped'] | null;
}

/** One more reading of all text. */
interface Pass extends FirstPass {
  files: readonly SourceFile[];
  documents: DocumentOptions;
  skipInvalid: SkipInvalid | null;
  progress: (share: number) => void;
  signal: AbortSignal;
}

async function firstPass(
  files: readonly SourceFile[],
  options: DocumentOptions,
  skipInvalid: SkipInvalid | null,
  progress: (share: number) => void,
  signal: AbortSignal,
): Promise<FirstPass> {
  const rows = new InvalidRows(skipInvalid);
  const sources: Source[] = [];
  let autoBytes = 0;
  const documents = { auto: 0, train: 0, heldOut: 0 };
  let textBytes = 0;
  const holdsOut = options.heldOutShare > 0 || files.some(({ split }) => split === 'heldOut');
  const digests = holdsOut ? new FirstDigests(heldOutCandidates(options)) : null;
  for (const [index, source] of files.entries()) {
    const { name, format, split } = source;
    const file = await RegularFile.open(source);
    try {
      const found = await recognizeFormat(file, format, options.limits.unpackedBytesMax);
      if (found.format === 'text' && options.fields.length === 2)
        throw new DataError('FORMAT_UNKNOWN', { file: name, expected: pairsHaveFields, got: 'text' });
      const { sizeBytes, stamp } = file;
      sources.push({ name, sizeBytes, sha256: await file.sha256(signal), stamp, ...found });
      let fileBytes = 0;
      for await (const piece of piecesOfFile({ file, ...found }, options, rows)) {
        signal.throwIfAborted();
        fileBytes += piece.textBytes;
        digests?.add(piece, split);
        if (piece.endsDocument) documents[split]++;
        progress((index + Math.min(1, fileBytes / file.sizeBytes)) / files.length);
      }
      textBytes += fileBytes;
      if (split === 'auto') autoBytes += fileBytes;
      await file.assertUnchanged();
    } finally {
      await file.close();
    }
  }
  rows.end();
  // Of the `auto` documents some text is always for training.
  if (documents.auto + documents.train === 0) {
    throw new DataError('DATASET_EMPTY', {
      fileCount: files.length,
      heldOutDocumentCount: documents.heldOut,
    });
  }
  const division = divide(options, { documents: documents.auto, bytes: autoBytes });
  return {
    sources,
    division,
    digests: digests?.end(division) ?? null,
    heldOutDocuments: documents.heldOut,
    textBytes,
    skipped:
      rows.skippedCount === 0 ? null : { rows: rows.skippedCount, of: rows.rowCount, first: rows.skipped },
  };
}

/** All text in order, each piece with its part; what the held-out part has is left out of training. */
function placedPieces(pass: Pass, onDuplicate: () => void): AsyncGenerator<PlacedPiece> {
  const pieces = allPieces(pass);
  return pass.digests === null ? pieces : withoutHeldOut(pieces, pass.digests, onDuplicate);
}

async function* allPieces({
  files,
  sources,
  division,
  documents,
  skipInvalid,
  progress,
  signal,
  textBytes,
}: Pass): AsyncGenerator<PlacedPiece> {
  const place = divider(division);
  const rows = new InvalidRows(skipInvalid); // leaves out what the first pass left out
  let done = 0;
  let document = 0;
  for (const [index, source] of files.entries()) {
    const { name, split } = source;
    const file = await RegularFile.open(source);
    try {
      const { format, compression } = sources[index]!;
      if (file.stamp !== sources[index]!.stamp) throw new DataError('FILE_CHANGED', { file: name });
      for await (const piece of piecesOfFile({ file, format, compression }, documents, rows)) {
        signal.throwIfAborted();
        const placed = split === 'auto' ? place(piece) : [{ ...piece, split }];
        for (const part of placed) yield { ...part, file: name, document };
        if (piece.endsDocument) document++;
        done += piece.textBytes;
        progress(done / textBytes);
      }
      await file.assertUnchanged();
    } finally {
      await file.close();
    }
  }
}

async function tokenizerJson(spec: PrepareOptions['tokenizer'], folder: string, pass: Pass): Promise<string> {
  if (spec.kind === 'bytes') return byteLevelTokenizerJson([]); // so that a model of bytes loads elsewhere
  if (spec.kind === 'huggingFace') return spec.tokenizerJson;
  const samplePath = join(folder, '.sample.txt');
  const scratchPath = join(folder, '.trained.json');
  try {
    await writeSample(samplePath, pass);
    return await trainBpe(samplePath, spec.vocabularySize, scratchPath);
  } finally {
    await Promise.all([rm(samplePath, { force: true }), rm(scratchPath, { force: true })]);
  }
}

/** Training text for a vocabulary: all of it, or pieces spread evenly over it. */
async function writeSample(path: string, pass: Pass): Promise<void> {
  const { seed, limits } = pass.documents;
  const bytesMax = limits.tokenizerSampleBytesMax;
  const share = bytesMax / Math.max(1, pass.textBytes);
  const shareOf = seededShares(seed, 'vocabulary');
  const sample = await open(path, 'wx');
  try {
    let written = 0;
    let waiting = '';
    let index = 0;
    let duplicates = 0;
    for await (const { text, split, textBytes } of placedPieces(pass, () => duplicates++)) {
      if (split !== 'train' || shareOf(index++) >= share || written + textBytes > bytesMax) continue;
      written += textBytes;
      waiting += `${trainableText(text)}\n`;
      if (waiting.length < 1 << 20) continue;
      await sample.writeFile(waiting);
      waiting = '';
    }
    if (index === 0) throw emptyTrainingPart(pass, duplicates);
    await sample.writeFile(waiting);
  } finally {
    await sample.close();
  }
}

async function writeSplits(
  tokenizer: Tokenizer,
  folder: string,
  pass: Pass,
): Promise<Pick<DatasetManifest, 'train' | 'heldOut' | 'tokenBytes'>> {
  const tokenBytes = tokenizer.vocabularySize <= 65_536 ? 2 : 4;
  const { shardBytesMax } = pass.documents.limits;
  const writer = (prefix: string, textPath?: string) =>
    new SplitWriter({
      folder,
      prefix,
      tokenBytes,
      shardBytesMax,
      endOfTextId: tokenizer.endOfTextId,
      isMasked: pass.documents.fields.length === 2,
      textPath,
    });
  const train = writer('train');
  const heldOut = writer('held-out', join(folder, heldOutTextFile));
  try {
    const encoder = new PieceEncoder(tokenizer);
    const lost = new LostText();
    let duplicates = 0;
    for await (const batch of batchesOf(placedPieces(pass, () => duplicates++))) {
      const encoded = await encoder.encode(batch);
      for (const [index, piece] of batch.entries()) {
        const tokens = encoded[index]!;
        lost.add(piece, tokens.length);
        await (piece.split === 'train' ? train : heldOut).write(piece, tokens);
      }
      await nextTurn(); // encoding gives the event loop no turn, and messages and signals want one
    }
    lost.end();
    const trained = await train.end();
    if (trained.tokens === 0) throw emptyTrainingPart(pass, duplicates);
    return {
      // Without duplicates the manifest is what it always was.
      train: duplicates === 0 ? trained : { ...trained, duplicates },
      heldOut: await heldOut.end(),
      tokenBytes,
    };
  } finally {
    await train.close();
    await heldOut.close();
  }
}

function emptyTrainingPart({ files, heldOutDocuments }: Pass, duplicateDocumentCount: number): DataError {
  const heldOutDocumentCount = heldOutDocuments;
  return new DataError('DATASET_EMPTY', {
    fileCount: files.length,
    heldOutDocumentCount,
    duplicateDocumentCount,
  });
}

async function* batchesOf<T extends TextPiece>(pieces: AsyncIterable<T>): AsyncGenerator<T[]> {
  let batch: T[] = [];
  let bytes = 0;
  for await (const piece of pieces) {
    batch.push(piece);
    bytes += piece.textBytes;
    if (bytes < batchBytesMax && batch.length < 4096) continue;
    yield batch;
    batch = [];
    bytes = 0;
  }
  if (batch.length > 0) yield batch;
}

/** Reports a pass's progress as a part of the whole, a hundredth at a time. */
function part(onProgress: (share: number) => void, from: number, to: number): (share: number) => void {
  let reported = from;
  return (share) => {
    const whole = from + (to - from) * Math.min(1, share);
    if (whole - reported < 0.01) return;
    reported = whole;
    onProgress(whole);
  };
}
