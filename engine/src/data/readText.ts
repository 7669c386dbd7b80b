import { cutInBytes, decodeUtf8, type TextPiece } from './textPieces.js';
import { pieceBytesMax } from './dataLimits.js';

/**
 * A plain text file is one document, whatever its size: it is read in pieces. A byte order mark is dropped; line ends and NUL stay as they
 * are. Throws UTF8_INVALID with the byte offset.
 */
export async function* readText(blocks: AsyncIterable<Buffer>, file: string): AsyncGenerator<TextPiece> {
  let waiting: Buffer = Buffer.alloc(0);
  let position = 0;
  const piece = (bytes: Buffer, endsDocument: boolean): TextPiece => {
    const text = decodeUtf8(bytes, file, position);
    position += bytes.length;
    return { text, textBytes: bytes.length, endsDocument, endsText: endsDocument, isTrained: true };
  };
  for await (const block of withoutMark(blocks, (markBytes) => (position = markBytes))) {
    waiting = waiting.length === 0 ? block : Buffer.concat([waiting, block]);
    // Keeps at least one more piece, since the last one has to be marked as last.
    while (waiting.length > pieceBytesMax) {
      const bytes = waiting.subarray(0, cutInBytes(waiting.subarray(0, pieceBytesMax)));
      yield piece(bytes, false);
      waiting = waiting.subarray(bytes.length);
    }
  }
  if (waiting.length > 0) yield piece(waiting, true);
}

const mark = Buffer.from([0xef, 0xbb, 0xbf]);

/** Blocks of bytes without a UTF-8 byte order mark at the beginning. */
export async function* withoutMark(
  blocks: AsyncIterable<Buffer>,
  onMark: (markBytes: number) => void,
): AsyncGenerator<Buffer> {
  let start: Buffer | null = Buffer.alloc(0);
  for await (const block of blocks) {
    if (start === null) {
      yield block;
      continue;
    }
    start = Buffer.concat([start, block]);
    if (start.length < mark.length) continue;
    const hasMark = start.subarray(0, mark.length).equals(mark);
    if (hasMark) onMark(mark.length);
    yield start.subarray(hasMark ? mark.length : 0);
    start = null;
  }
  if (start !== null && start.length > 0) yield start;
}
