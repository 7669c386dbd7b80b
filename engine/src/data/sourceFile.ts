import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { isUtf8 } from 'node:buffer';
import { DataError } from './dataError.js';

export interface SourceFile {
  path: string;
  /** How messages call it. */
  name: string;
  format: 'text' | 'jsonl' | 'parquet';
  /** `auto` is divided by the held-out share. */
  split: 'auto' | 'train' | 'heldOut';
}

/** One stretch of a document's text; `isLast` ends the document. */
export interface DocumentPiece {
  text: string;
  isLast: boolean;
}

/** Opens a regular file for reading; links, devices and pipes are refused. */
export async function openSource(file: Pick<SourceFile, 'path' | 'name'>): Promise<{ handle: FileHandle; sizeBytes: number }> {
  let handle: FileHandle;
  try {
    // Without O_NONBLOCK opening a pipe would wait for a writer.
    handle = await open(file.path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw new DataError('FILE_UNREADABLE', `${file.name} could not be opened: ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
  const stat = await handle.stat();
  if (stat.isFile()) return { handle, sizeBytes: stat.size };
  await handle.close();
  throw new DataError('FILE_UNREADABLE', `${file.name} is not a regular file`);
}

/** Decodes bytes that must be whole UTF-8; `offset` is where they stand in the file. */
export function decodeUtf8(bytes: Buffer, name: string, offset: number): string {
  if (!isUtf8(bytes)) {
    throw new DataError('UTF8_INVALID', `${name} is not UTF-8 at byte ${offset + firstInvalidByte(bytes)}`);
  }
  return bytes.toString('utf8');
}

/** Refuses a text with half a character, which JSON can hold and UTF-8 cannot. */
export function checkWellFormed(text: string, place: string): string {
  if (/\p{Surrogate}/u.test(text)) throw new DataError('UTF8_INVALID', `${place} holds half of a surrogate pair`);
  return text;
}

export function withoutByteOrderMark(bytes: Buffer): Buffer {
  return bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? bytes.subarray(3) : bytes;
}

/** By halving: the longest valid beginning ends where the first invalid character begins. */
function firstInvalidByte(bytes: Buffer): number {
  let valid = 0;
  let invalid = bytes.length;
  while (invalid - valid > 1) {
    const middle = (valid + invalid) >> 1;
    // A cut inside a character looks invalid too, so the cut is moved back to where a character begins.
    let cut = middle;
    while (cut > valid && (bytes[cut]! & 0xc0) === 0x80) cut--;
    if (cut === valid) break;
    if (isUtf8(bytes.subarray(0, cut))) valid = cut;
    else invalid = cut;
  }
  return valid;
}
