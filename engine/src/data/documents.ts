import type { ChatTemplate } from './chatTemplate.js';
import type { DataLimits } from './dataLimits.js';
import { seededShares } from './permutation.js';
import { wholeFile, type PartReading } from './filePart.js';
import type { InvalidRows } from './invalidRows.js';
import { readCsv } from './readCsv.js';
import { readJsonLines } from './readJsonLines.js';
import { readJsonList } from './readJsonList.js';
import { readParquet } from './readParquet.js';
import { readText } from './readText.js';
import type { RegularFile } from './regularFile.js';
import type { SourceFormat } from './sourceFormat.js';
import { blocksOf, unpackedBlocks, type Compression } from './unpack.js';
import { nextCut, type DocumentFields, type TextPiece } from './textPieces.js';

/** A piece of text and its part of the data set. */
export interface PlacedPiece extends TextPiece {
  split: 'train' | 'heldOut';
  /** Name and index of its source file. */
  file: string;
  fileIndex: number;
  /** Number of its document among all documents read. */
  document: number;
}

export interface DocumentOptions {
  fields: DocumentFields;
  /** Null if the fields contain texts; otherwise the single field contains messages. */
  chat: ChatTemplate | null;
  /** Fraction of the `auto` documents, or of the bytes of a single one. */
  heldOutShare: number;
  seed: number;
  limits: DataLimits;
}

/** Whether some tokens are not to be learned. */
export function isMasked({ fields, chat }: Pick<DocumentOptions, 'fields' | 'chat'>): boolean {
  return fields.length === 2 || chat !== null;
}

/** How the `auto` documents are divided, as determined by a first pass over them. */
export type Division =
  | { kind: 'none' }
  | { kind: 'byDocument'; isHeldOut(index: number): boolean }
  | { kind: 'tail'; fromByte: number };

/**
 * Several documents are divided by a seeded hash of their number, with at least one in each part; of a single one the end is held out. A
 * single chat, or prompt with completion, is not divided and used for training.
 */
export function divide(
  { heldOutShare, seed, fields, chat }: DocumentOptions,
  auto: { documents: number; bytes: number },
): Division {
  if (heldOutShare === 0 || auto.documents === 0) return { kind: 'none' };
  if (auto.documents === 1 && isMasked({ fields, chat })) return { kind: 'none' };
  if (auto.documents === 1) return { kind: 'tail', fromByte: Math.floor(auto.bytes * (1 - heldOutShare)) };
  const shareOf = seededShares(seed, 'heldOut');
  let chosen = 0;
  let least = 0;
  let greatest = 0;
  for (let index = 0; index < auto.documents; index++) {
    const share = shareOf(index);
    if (share < heldOutShare) chosen++;
    if (share < shareOf(least)) least = index;
    if (share > shareOf(greatest)) greatest = index;
  }
  if (chosen === 0) return { kind: 'byDocument', isHeldOut: (index) => index === least };
  if (chosen === auto.documents) return { kind: 'byDocument', isHeldOut: (index) => index !== greatest };
  return { kind: 'byDocument', isHeldOut: (index) => shareOf(index) < heldOutShare };
}

/**
 * Whether the `auto` document with a number may be held out, before the division is known; must be called in order. Selects more than will
 * be held out.
 */
export function heldOutCandidates({ heldOutShare, seed }: DocumentOptions): (autoIndex: number) => boolean {
  const shareOf = seededShares(seed, 'heldOut');
  let least = Infinity;
  return (index) => {
    const share = shareOf(index);
    if (heldOutShare === 0 || (share >= heldOutShare && share >= least)) return false;
    least = Math.min(least, share);
    return true;
  };
}

/** An open source file with its detected format. */
export interface OpenSource {
  file: RegularFile;
  format: SourceFormat;
  compression: Compression;
}

/**
 * Pieces of every document of a file, or of a part of it, in order; documents without text have none. Only uncompressed files have parts.
 */
export function piecesOfFile(
  { file, format, compression }: OpenSource,
  { fields, chat, limits }: DocumentOptions,
  rows: InvalidRows,
  part: PartReading = wholeFile(),
): AsyncGenerator<TextPiece> {
  const blocksFrom = (position: number) =>
    position === 0 ? unpackedBlocks(file, compression, limits.unpackedBytesMax) : blocksOf(file, position);
  const blocks = () => blocksFrom(part.place.at);
  switch (format) {
    case 'text':
      return readText(blocks(), file.name);
    case 'jsonl':
      return readJsonLines(blocks(), file.name, { fields, chat }, limits.lineBytesMax, rows, part);
    case 'json':
      return readJsonList(blocks(), file.name, { fields, chat }, limits.lineBytesMax, rows, part);
    case 'csv':
      return readCsv(blocksFrom, file.name, fields, limits.lineBytesMax, rows, part);
    case 'parquet':
      return readParquet(file, fields, limits, rows, part);
  }
}

/** Assigns parts to the pieces of the `auto` documents, in order, starting after a given number of documents. */
export function divider(
  division: Division,
  before = { documents: 0, bytes: 0 },
): (piece: TextPiece) => Omit<PlacedPiece, 'document' | 'file' | 'fileIndex'>[] {
  let { documents, bytes } = before;
  return (piece) => {
    const start = bytes;
    const index = documents;
    bytes += piece.textBytes;
    if (piece.endsDocument) documents++;
    if (division.kind === 'tail') return divideTail(piece, start, division.fromByte);
    return [
      { ...piece, split: division.kind === 'byDocument' && division.isHeldOut(index) ? 'heldOut' : 'train' },
    ];
  };
}

/** The piece that contains the boundary is cut at the first white space after it, or at the boundary itself. */
function divideTail(
  piece: TextPiece,
  start: number,
  fromByte: number,
): Omit<PlacedPiece, 'document' | 'file' | 'fileIndex'>[] {
  const { text, textBytes, endsDocument, isTrained } = piece;
  if (start > 0 && start >= fromByte) return [{ ...piece, split: 'heldOut' }];
  if (start + textBytes <= fromByte) {
    const isLast = endsDocument || start + textBytes === fromByte;
    return [{ ...piece, split: 'train', endsDocument: isLast, endsText: isLast }];
  }
  const near = Math.max(charactersWithin(text, fromByte - start), firstCharacter(text));
  const space = nextCut(text, near);
  const cut = space < 0 ? near : space;
  const part = (split: PlacedPiece['split'], text: string, endsDocument: boolean) => ({
    split,
    text,
    textBytes: Buffer.byteLength(text),
    endsDocument,
    endsText: endsDocument,
    isTrained,
  });
  const parts = [part('train', text.slice(0, cut), true)];
  if (cut < text.length) parts.push(part('heldOut', text.slice(cut), endsDocument));
  return parts;
}

/** Length of the longest prefix of whole characters that takes at most `bytesMax` bytes. */
function charactersWithin(text: string, bytesMax: number): number {
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(Math.max(0, bytesMax)));
  return read;
}

function firstCharacter(text: string): number {
  return (text.codePointAt(0) ?? 0) > 0xffff ? 2 : 1;
}
