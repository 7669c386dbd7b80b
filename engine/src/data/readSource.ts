import { createHash } from 'node:crypto';
import { DataError } from './dataErrors.js';
import { piecesOfFile, type DocumentOptions, type OpenSource } from './documents.js';
import { endOf } from './heldOutDigests.js';
import type { InvalidRows } from './invalidRows.js';
import { chatsAreJson, pairsHaveFields } from './prepareOptions.js';
import { readJsonLines, type LinePart } from './readJsonLines.js';
import { RegularFile, type SourceFile } from './regularFile.js';
import { recognizeFormat } from './sourceFormat.js';
import type { TextPiece } from './textPieces.js';
import { blocksOf } from './unpack.js';

/** A file as it was found. */
export interface Source extends Omit<OpenSource, 'file'> {
  name: string;
  sizeBytes: number;
  sha256: string;
  /** Size and time: a file must be the same in every pass. */
  stamp: string;
  /** How many it has, those without text not among them, and the UTF-8 bytes of their text. */
  documents: number;
  textBytes: number;
}

/** Of a whole document: the digest of its text, as `endOf` gives it, and the UTF-8 bytes of that. */
export type OnDocument = (digest: string, bytes: number) => void;

/** Reads a file for the first time: what it is, and its documents. Throws DataError, or the signal's reason. */
export async function readSource(
  source: SourceFile,
  options: DocumentOptions,
  rows: InvalidRows,
  /** Null where nobody compares documents. */
  onDocument: OnDocument | null,
  progress: (share: number) => void,
  signal: AbortSignal,
  /** Waited for before each piece. */
  room: () => Promise<void> | void = () => {},
): Promise<Source> {
  const { name, format } = source;
  const file = await RegularFile.open(source);
  try {
    const found = await recognizeFormat(file, format, options.limits.unpackedBytesMax);
    if (found.format === 'text' && options.fields.length === 2)
      throw new DataError('FORMAT_UNKNOWN', { file: name, expected: pairsHaveFields, got: 'text' });
    if (options.chat !== null && found.format !== 'jsonl' && found.format !== 'json')
      throw new DataError('FORMAT_UNKNOWN', { file: name, expected: chatsAreJson, got: found.format });
    const { sizeBytes, stamp } = file;
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

/** Documents of some pieces, and the UTF-8 bytes of their text. */
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

/** The bytes in which the lines of a part begin. */
export type FilePart = Pick<LinePart, 'from' | 'to'>;

/** What a large file of lines is, and its parts, which can be read side by side; null for a file that is read from its beginning to its end. */
export interface FileParts extends Omit<OpenSource, 'file'> {
  parts: FilePart[];
}

export async function filePartsOf(
  source: SourceFile,
  { limits }: DocumentOptions,
): Promise<FileParts | null> {
  const { filePartBytes } = limits;
  const file = await RegularFile.open(source).catch((error: unknown) => {
    if (error instanceof DataError) return null; // whoever reads it finds that in its turn
    throw error;
  });
  if (file === null) return null;
  try {
    if (file.sizeBytes <= filePartBytes) return null;
    const found = await recognizeFormat(file, source.format, limits.unpackedBytesMax);
    if (found.format !== 'jsonl' || found.compression !== 'none') return null;
    const count = Math.ceil(file.sizeBytes / filePartBytes);
    const placeOf = (part: number) => (part === count ? Infinity : part * filePartBytes);
    const parts = Array.from({ length: count }, (_, part) => ({
      from: placeOf(part),
      to: placeOf(part + 1),
    }));
    return { ...found, parts };
  } catch (error) {
    if (error instanceof DataError) return null;
    throw error;
  } finally {
    await file.close();
  }
}

/** What a part of a file has. */
export interface PartFound extends Pick<Source, 'documents' | 'textBytes' | 'stamp'> {
  lineEnds: number;
}

/** Reads the lines of a part, of which the first has a number. Throws as readSource does. */
export async function readPart(
  source: SourceFile,
  { from, to, firstNumber }: Omit<LinePart, 'lineEnds'>,
  { fields, chat, limits }: DocumentOptions,
  rows: InvalidRows,
  onDocument: OnDocument | null,
  progress: (share: number) => void,
  signal: AbortSignal,
  room: () => Promise<void> | void = () => {},
): Promise<PartFound> {
  const file = await RegularFile.open(source);
  try {
    const { stamp, sizeBytes } = file;
    const part: LinePart = { from, to, firstNumber, lineEnds: 0 };
    const blocks = blocksOf(file, Math.max(0, from - 1));
    const pieces = readJsonLines(blocks, file.name, { fields, chat }, limits.lineBytesMax, rows, part);
    const partBytes = Math.min(to, sizeBytes) - from;
    const onBytes = (bytes: number) => progress(Math.min(1, bytes / partBytes));
    const counts = await readPieces(pieces, onDocument, { signal, room, onBytes });
    await file.assertUnchanged();
    return { ...counts, stamp, lineEnds: part.lineEnds };
  } finally {
    await file.close();
  }
}

/** What a file is as a whole. */
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
