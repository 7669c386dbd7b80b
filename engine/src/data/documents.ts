import { DataError } from './dataError.js';
import type { DataLimits } from './limits.js';
import { hashToUnit } from './permutation.js';
import { readJsonl } from './readJsonl.js';
import { readParquet } from './readParquet.js';
import { readText } from './readText.js';
import type { DocumentPiece, SourceFile } from './sourceFile.js';

/** A stretch of text and the part of the data set that it belongs to. */
export interface PlacedPiece {
  text: string;
  split: 'train' | 'heldOut';
  /** Ends a document of its part. */
  isLast: boolean;
}

export interface DocumentOptions {
  files: readonly SourceFile[];
  textField: string;
  /** Share of the `auto` documents, or of a single one's bytes. */
  heldOutShare: number;
  seed: number;
  limits: DataLimits;
}

/** How the `auto` documents are divided; found by a first pass over them. */
export type Division =
  | { kind: 'none' }
  | { kind: 'byDocument'; isHeldOut(index: number): boolean }
  | { kind: 'tail'; fromByte: number };

/**
 * Counts what is to be divided. Several documents are divided by a seeded hash of their number, with at least one held
 * out; a single one gives its end.
 */
export function divide(options: DocumentOptions, counted: { documents: number; bytes: number }): Division {
  const { heldOutShare, seed } = options;
  if (heldOutShare === 0 || counted.documents === 0) return { kind: 'none' };
  if (counted.documents === 1) return { kind: 'tail', fromByte: Math.floor(counted.bytes * (1 - heldOutShare)) };
  const isChosen = (index: number) => hashToUnit(seed, index) < heldOutShare;
  for (let index = 0; index < counted.documents; index++) {
    if (isChosen(index)) return { kind: 'byDocument', isHeldOut: isChosen };
  }
  const only = Math.floor(hashToUnit(seed, -1) * counted.documents);
  return { kind: 'byDocument', isHeldOut: (index) => index === only };
}

/** All text in order, each stretch with its part. Documents without text are passed over. */
export async function* placedPieces(options: DocumentOptions, division: Division): AsyncGenerator<PlacedPiece> {
  let autoIndex = 0;
  let autoBytes = 0;
  for (const file of options.files) {
    for await (const { text, isLast } of wholeDocuments(file, options)) {
      if (file.split !== 'auto') {
        yield { text, split: file.split, isLast };
        continue;
      }
      if (division.kind === 'tail') {
        const start = autoBytes;
        autoBytes += Buffer.byteLength(text);
        yield* splitTail(text, start, division.fromByte, isLast);
      } else {
        const isHeldOut = division.kind === 'byDocument' && division.isHeldOut(autoIndex);
        yield { text, split: isHeldOut ? 'heldOut' : 'train', isLast };
      }
      if (isLast) autoIndex++;
    }
  }
}

/** Counts the `auto` documents and their bytes, and gives every piece to `look` on the way. */
export async function countDocuments(
  options: DocumentOptions,
  look: (piece: DocumentPiece, file: SourceFile, autoIndex: number) => void | Promise<void>,
): Promise<{ documents: number; bytes: number }> {
  let documents = 0;
  let bytes = 0;
  for (const file of options.files) {
    for await (const piece of wholeDocuments(file, options)) {
      await look(piece, file, documents);
      if (file.split !== 'auto') continue;
      bytes += Buffer.byteLength(piece.text);
      if (piece.isLast) documents++;
    }
  }
  return { documents, bytes };
}

async function* wholeDocuments(file: SourceFile, options: DocumentOptions): AsyncGenerator<DocumentPiece> {
  let hasText = false;
  for await (const piece of readPieces(file, options)) {
    hasText ||= piece.text !== '';
    if (hasText) yield piece;
    if (piece.isLast) hasText = false;
  }
}

function readPieces(file: SourceFile, { textField, limits }: DocumentOptions): AsyncGenerator<DocumentPiece> {
  switch (file.format) {
    case 'text':
      return readText(file, limits);
    case 'jsonl':
      return readJsonl(file, textField, limits);
    case 'parquet':
      return readParquet(file, textField, limits);
    default:
      throw new DataError('FILE_UNREADABLE', `${file.name} has the unknown format ${String(file.format)}`);
  }
}

/** The piece in which the held-out end begins is cut at the first white space after the place. */
function* splitTail(text: string, start: number, fromByte: number, isLast: boolean): Generator<PlacedPiece> {
  const end = start + Buffer.byteLength(text);
  if (start >= fromByte && start > 0) return yield { text, split: 'heldOut', isLast };
  if (end <= fromByte) return yield { text, split: 'train', isLast };
  const near = Buffer.from(text).subarray(0, fromByte - start).toString('utf8').replace(/\ufffd+$/, '').length;
  const space = text.slice(near).search(/(?<=\S)\s/u);
  const cut = space < 0 ? text.length : near + space;
  if (cut > 0) yield { text: text.slice(0, cut), split: 'train', isLast: true };
  if (cut < text.length) yield { text: text.slice(cut), split: 'heldOut', isLast };
}
