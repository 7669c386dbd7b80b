import { createHash } from 'node:crypto';
import { DataError } from './dataErrors.js';
import { piecesOfFile, type DocumentOptions, type OpenSource } from './documents.js';
import { partsOfBytes, type FilePart, type PartReading, type RowPlace } from './filePart.js';
import { endOf } from './heldOutDigests.js';
import type { InvalidRows } from './invalidRows.js';
import { chatsAreJson, pairsHaveFields } from './prepareOptions.js';
import { csvRowFrom } from './readCsv.js';
import { lineFrom } from './readJsonLines.js';
import { elementFrom } from './readJsonList.js';
import { parquetParts } from './readParquet.js';
import { RegularFile, type SourceFile } from './regularFile.js';
import { recognizeFormat } from './sourceFormat.js';
import type { TextPiece } from './textPieces.js';
import { blocksOf } from './unpack.js';

/** A file after its first reading. */
export interface Source extends Omit<OpenSource, 'file'> {
  name: string;
  sizeBytes: number;
  sha256: string;
  /** Size and time: a file must be the same in every pass. */
  stamp: string;
  /** Number of documents with text, and the UTF-8 bytes of their text. */
  documents: number;
  textBytes: number;
}

/** Called per complete document: the digest of its text, as returned by `endOf`, and its UTF-8 bytes. */
export type OnDocument = (digest: string, bytes: number) => void;

/** First reading of a file: its format and its documents. Throws DataError, or the signal's reason. */
export async function readSource(
  source: SourceFile,
  options: DocumentOptions,
  rows: InvalidRows,
  /** Null if documents are not compared. */
  onDocument: OnDocument | null,
  progress: (share: number) => void,
  signal: AbortSignal,
  /** Awaited before each piece. */
  room: () => Promise<void> | void = () => {},
): Promise<Source> {
  const file = await RegularFile.open(source);
  try {
    const found = await recognize(file, source, options);
    const { name, sizeBytes, stamp } = file;
    const sha256 = await file.sha256(signal);
    const counts = await readPieces(piecesOfFile({ file, ...found }, options, rows), onDocument, {
      signal,
      room,
      onBytes: (bytes) => progress(Math.min(1, bytes / sizeBytes)),
    });
    await file.assertUnchanged();
    return { name, sizeBytes, sha256, stamp, ...found, ...counts };
  } finally {
    await file.close();
  }
}

/** Detects a file's format. Throws FORMAT_UNKNOWN, also for a format that lacks what the options require. */
async function recognize(
  file: RegularFile,
  { format }: SourceFile,
  { fields, chat, limits }: DocumentOptions,
): Promise<Omit<OpenSource, 'file'>> {
  const found = await recognizeFormat(file, format, limits.unpackedBytesMax);
  const unfit = (expected: string) =>
    new DataError('FORMAT_UNKNOWN', { file: file.name, expected, got: found.format });
  if (found.format === 'text' && fields.length === 2) throw unfit(pairsHaveFields);
  if (chat !== null && found.format !== 'jsonl' && found.format !== 'json') throw unfit(chatsAreJson);
  return found;
}

/** Counts documents and the UTF-8 bytes of their text. */
async function readPieces(
  pieces: AsyncIterable<TextPiece>,
  onDocument: OnDocument | null,
  how: { signal: AbortSignal; room: () => Promise<void> | void; onBytes: (textBytes: number) => void },
): Promise<Pick<Source, 'documents' | 'textBytes'>> {
  let [documents, textBytes, bytes] = [0, 0, 0];
  let hash = createHash('sha256');
  for await (const piece of pieces) {
    how.signal.throwIfAborted();
    await how.room();
    textBytes += piece.textBytes;
    if (onDocument !== null) {
      hash.update(piece.text);
      bytes += piece.textBytes;
    }
    if (piece.endsDocument) {
      documents++;
      onDocument?.(endOf(hash), bytes);
      hash = createHash('sha256');
      bytes = 0;
    }
    how.onBytes(textBytes);
  }
  return { documents, textBytes };
}

/** A large file and its parts, which can be read in parallel. */
export interface FileParts extends Omit<OpenSource, 'file'> {
  parts: FilePart[];
}

/** Null for a file that must be read sequentially. */
export async function filePartsOf(source: SourceFile, options: DocumentOptions): Promise<FileParts | null> {
  const { fields, limits } = options;
  try {
    const file = await RegularFile.open(source);
    try {
      if (file.sizeBytes <= limits.filePartBytes) return null;
      const found = await recognize(file, source, options);
      // A text file is one document, and a compressed file can only be unpacked from its beginning.
      if (found.format === 'text' || found.compression !== 'none') return null;
      const parts =
        found.format === 'parquet'
          ? await parquetParts(file, fields, limits)
          : partsOfBytes(file.sizeBytes, limits.filePartBytes);
      return parts === null || parts.length < 2 ? null : { ...found, parts };
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof DataError) return null; // whoever reads the file gets the error in turn
    throw error;
  }
}

/**
 * Where the first row of a part appears to begin, found without the text before it. Correct for a valid file; reading the part before it
 * confirms it.
 */
export async function beginOfPart(
  source: SourceFile,
  format: FileParts['format'],
  { from, to }: FilePart,
  { limits }: DocumentOptions,
): Promise<number> {
  if (from === 0 || format === 'parquet') return from;
  const file = await RegularFile.open(source);
  try {
    // Only the part itself is searched.
    const blocksFrom = (position: number) => blocksOf(file, position, to);
    if (format === 'csv') return await csvRowFrom(blocksFrom, from, limits.lineBytesMax);
    if (format === 'json') return await elementFrom(blocksFrom, from);
    return await lineFrom(blocksFrom, from);
  } finally {
    await file.close();
  }
}

/** Content of a part of a file, and where the first row after it begins. */
export interface PartFound extends Pick<Source, 'documents' | 'textBytes' | 'stamp'> {
  place: RowPlace;
}

/** Reads the rows of a part. Throws as readSource does. */
export async function readPart(
  source: SourceFile,
  { format, part, place }: { format: FileParts['format']; part: FilePart; place: RowPlace },
  options: DocumentOptions,
  rows: InvalidRows,
  onDocument: OnDocument | null,
  progress: (share: number) => void,
  signal: AbortSignal,
  room: () => Promise<void> | void = () => {},
): Promise<PartFound> {
  const file = await RegularFile.open(source);
  try {
    const { stamp } = file;
    // A row may be longer than a part; then no row begins in the part.
    if (place.at >= part.to) return { documents: 0, textBytes: 0, stamp, place };
    const reading: PartReading = { place: { ...place }, to: part.to };
    const pieces = piecesOfFile({ file, format, compression: 'none' }, options, rows, reading);
    const onBytes = (bytes: number) => progress(Math.min(1, bytes / part.bytes));
    const counts = await readPieces(pieces, onDocument, { signal, room, onBytes });
    await file.assertUnchanged();
    return { ...counts, stamp, place: reading.place };
  } finally {
    await file.close();
  }
}

/** Properties of a file as a whole. */
export type FileDigest = Pick<Source, 'sizeBytes' | 'sha256' | 'stamp'>;

export async function digestSource(source: SourceFile, signal: AbortSignal): Promise<FileDigest> {
  const file = await RegularFile.open(source);
  try {
    const { sizeBytes, stamp } = file;
    const sha256 = await file.sha256(signal);
    await file.assertUnchanged();
    return { sizeBytes, sha256, stamp };
  } finally {
    await file.close();
  }
}
