import { cutInBytes, decodeUtf8, type TextPiece } from './textPieces.js';
import { pieceBytesMax } from './dataLimits.js';
import type { RegularFile } from './regularFile.js';

/**
 * A plain text file is one document, whatever its size: it is read in pieces. A byte order mark is dropped; line ends and
 * NUL stay as they are. Throws UTF8_INVALID with the offset of the byte.
 */
export async function* readText(file: RegularFile): AsyncGenerator<TextPiece> {
  let position = await byteOrderMarkBytes(file);
  while (position < file.sizeBytes) {
    const block = await file.read(position, Math.min(pieceBytesMax, file.sizeBytes - position));
    const isLast = position + block.length === file.sizeBytes;
    const bytes = isLast ? block : block.subarray(0, cutInBytes(block));
    const text = decodeUtf8(bytes, file.name, position);
    yield { text, textBytes: bytes.length, endsDocument: isLast, isTrained: true };
    position += bytes.length;
  }
}

/** 3 when the file begins with a UTF-8 byte order mark, else 0. */
export async function byteOrderMarkBytes(file: RegularFile): Promise<0 | 3> {
  if (file.sizeBytes < 3) return 0;
  const start = await file.read(0, 3);
  return start[0] === 0xef && start[1] === 0xbb && start[2] === 0xbf ? 3 : 0;
}
