import { isUtf8 } from 'node:buffer';
import type { RenderedChat } from './chatTemplate.js';
import { DataError } from './dataErrors.js';
import { pieceBytesMax } from './dataLimits.js';

/** Part of a document, at most about a mebibyte. */
export interface TextPiece {
  text: string;
  /** UTF-8 bytes of the text. */
  textBytes: number;
  /** Whether the document ends with this piece. */
  endsDocument: boolean;
  /** Whether it is the end of a text that is encoded as a unit: a document, its prompt, or its part of the data set. */
  endsText: boolean;
  /** Whether its tokens are to be learned; false for prompts, which are only read. */
  isTrained: boolean;
  /** Spans of a chat that are to be learned, in UTF-16 units; absent if all or nothing of it is to be learned. */
  spans?: readonly (readonly [start: number, end: number])[];
}

/** Fields of a line or row: one text, or a prompt and the completion that is to be learned. */
export type DocumentFields = readonly [text: string] | readonly [prompt: string, completion: string];

/** The pieces of a document, from the texts of its fields. */
export function* piecesOfFields([text = '', completion]: readonly string[]): Generator<TextPiece> {
  if (completion === undefined) yield* piecesOf(text);
  else {
    // Separate pieces, so that a prompt has the same tokens as when it is sent by itself for generation.
    for (const piece of piecesOf(text)) yield { ...piece, endsDocument: false, isTrained: false };
    yield* piecesOf(completion);
  }
}

/** A chat as one piece: its spans refer to positions in the whole text. */
export function pieceOfChat({ text, spans }: RenderedChat): TextPiece {
  const textBytes = Buffer.byteLength(text);
  return { text, textBytes, endsDocument: true, endsText: true, isTrained: false, spans };
}

/** The pieces of a text in memory. An empty text has none. */
function* piecesOf(text: string): Generator<TextPiece> {
  let start = 0;
  while (start < text.length) {
    let end = text.length;
    // A UTF-16 unit takes up to 3 bytes, so this bounds the bytes too.
    if (end - start > pieceBytesMax) end = cutInString(text, start, start + pieceBytesMax);
    const piece = text.slice(start, end);
    yield {
      text: piece,
      textBytes: Buffer.byteLength(piece),
      endsDocument: end === text.length,
      endsText: end === text.length,
      isTrained: true,
    };
    start = end;
  }
}

/**
 * Where to cut bytes so that words stay whole: before the last white space that follows a word, where every usual pre-tokenizer splits too,
 * so that the tokens are those of the whole text. If there is no such place, between characters.
 */
export function cutInBytes(bytes: Uint8Array): number {
  for (let i = bytes.length - 1; i > 0; i--) {
    if (isSpace(bytes[i]!) && bytes[i - 1]! < 0x80 && !isSpace(bytes[i - 1]!)) return i;
  }
  let end = bytes.length;
  // Back to the first byte of the last character, which may be incomplete.
  for (let i = 1; i <= 4 && i < end; i++) {
    const byte = bytes[end - i]!;
    if (byte < 0x80) break;
    if (byte >= 0xc0) {
      end -= i;
      break;
    }
  }
  return end;
}

/** First position at or after `from` where white space follows a word; -1 if there is none. */
export function nextCut(text: string, from: number): number {
  const match = /\S\s/u.exec(text.slice(Math.max(0, from - 1)));
  return match === null ? -1 : Math.max(0, from - 1) + match.index + match[0].length - 1;
}

/** Throws UTF8_INVALID with the offset of the first invalid byte; `place` precedes the offset in the message. */
export function decodeUtf8(bytes: Uint8Array, file: string, byteOffset: number, place = ''): string {
  if (!isUtf8(bytes)) {
    const at = firstInvalidByte(bytes);
    const got = `byte 0x${(bytes[at] ?? 0).toString(16).padStart(2, '0')}`;
    throw new DataError('UTF8_INVALID', {
      file,
      place: `${place}byte ${byteOffset + at}`,
      byteOffset: byteOffset + at,
      got,
    });
  }
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
}

function cutInString(text: string, start: number, end: number): number {
  for (let i = end; i > start + 1; i--) {
    const before = text.charCodeAt(i - 1);
    if (isSpace(text.charCodeAt(i)) && before < 0x80 && !isSpace(before)) return i;
  }
  const isHighSurrogate = (text.charCodeAt(end - 1) & 0xfc00) === 0xd800;
  return isHighSurrogate ? end - 1 : end;
}

function isSpace(code: number): boolean {
  return code === 0x20 || (code >= 0x09 && code <= 0x0d);
}

/** Start of the invalid character: prefixes up to it are valid UTF-8, longer ones are not. */
function firstInvalidByte(bytes: Uint8Array): number {
  let low = 0;
  let high = bytes.length;
  // Invariant: bytes[0, low) is valid, bytes[0, high) is not.
  while (high - low > 64) {
    let middle = (low + high) >>> 1;
    while (middle > low && (bytes[middle]! & 0xc0) === 0x80) middle--;
    if (middle === low) break;
    if (isUtf8(bytes.subarray(low, middle))) low = middle;
    else high = middle;
  }
  while (low < bytes.length) {
    const length = [1, 2, 3, 4].find(
      (size) => low + size <= bytes.length && isUtf8(bytes.subarray(low, low + size)),
    );
    if (length === undefined) break;
    low += length;
  }
  return low;
}
