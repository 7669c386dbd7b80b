import { DataError } from './dataErrors.js';
import type { InvalidRows } from './invalidRows.js';
import { piecesOfJson, type JsonBytes, type JsonDocuments } from './jsonTexts.js';
import { withoutMark } from './readText.js';
import type { TextPiece } from './textPieces.js';

/**
 * Every line is an object with its text in `fields`; blank lines are skipped. Throws JSONL_LINE_INVALID, FIELD_MISSING,
 * LINE_TOO_LONG or UTF8_INVALID with line and byte offset.
 * @param blocks from the beginning of the file, or of a part from the byte before it
 */
export async function* readJsonLines(
  blocks: AsyncIterable<Buffer>,
  file: string,
  what: JsonDocuments,
  lineBytesMax: number,
  rows: InvalidRows,
  part: LinePart = wholeFile(),
): AsyncGenerator<TextPiece> {
  for await (const line of linesOf(blocks, lineBytesMax, part)) {
    if (line.bytes?.every(isBlank)) continue;
    const pieces = rows.read(() => {
      const { bytes, number, byteOffset } = line;
      if (bytes === null)
        throw new DataError('LINE_TOO_LONG', { file, line: number, byteOffset, bytesMax: lineBytesMax });
      return piecesOfJson({ ...line, bytes }, file, what);
    });
    if (pieces !== undefined) yield* pieces;
  }
}

/** The lines of a file that begin at a byte of a range. */
export interface LinePart {
  from: number;
  to: number;
  /** Number of the first line of the part. */
  firstNumber: number;
  /** Line ends so far in its lines: the next part begins with the line after so many. */
  lineEnds: number;
}

function wholeFile(): LinePart {
  return { from: 0, to: Infinity, firstNumber: 1, lineEnds: 0 };
}

/** Bytes of null: the line is longer than any may be, and is reported as soon as it is. */
type Line = Omit<JsonBytes, 'bytes'> & { bytes: Buffer | null };

async function* linesOf(
  blocks: AsyncIterable<Buffer>,
  lineBytesMax: number,
  part: LinePart,
): AsyncGenerator<Line> {
  const { from, to, firstNumber } = part;
  let number = firstNumber;
  // In the last line of the part before, which ends behind the byte before this one.
  let isBefore = from > 0;
  let position = isBefore ? from - 1 : 0;
  let byteOffset = position;
  let parts: Buffer[] = [];
  let length = 0;
  const line = (bytes: Buffer | null): Line => ({ bytes, kind: 'line', number, byteOffset });
  const unmarked = isBefore ? blocks : withoutMark(blocks, (bytes) => (byteOffset = position = bytes));
  for await (const block of unmarked) {
    for (let start = 0; start < block.length;) {
      const end = block.indexOf(0x0a, start);
      if (!isBefore) {
        const piece = block.subarray(start, end === -1 ? block.length : end);
        const wasTooLong = length > lineBytesMax;
        length += piece.length;
        if (length > lineBytesMax) {
          parts = [];
          if (!wasTooLong) yield line(null);
        } else parts.push(piece);
      }
      if (end === -1) break;
      if (!isBefore) {
        if (length <= lineBytesMax) yield line(parts.length === 1 ? parts[0]! : Buffer.concat(parts));
        number++;
        part.lineEnds = number - firstNumber;
      }
      isBefore = false;
      byteOffset = position + end + 1;
      if (byteOffset >= to) return;
      parts = [];
      length = 0;
      start = end + 1;
    }
    position += block.length;
    if (isBefore && position >= to) return;
  }
  if (length > 0 && length <= lineBytesMax) yield line(Buffer.concat(parts));
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0d;
}
