import { DataError } from './dataErrors.js';
import { beyondEnd, wholeFile, type PartReading } from './filePart.js';
import type { InvalidRows } from './invalidRows.js';
import { piecesOfJson, type JsonBytes, type JsonDocuments } from './jsonTexts.js';
import { withoutMark } from './readText.js';
import type { TextPiece } from './textPieces.js';

/**
 * Every line is an object with its text in `fields`; blank lines are ignored. Throws JSONL_LINE_INVALID, FIELD_MISSING, LINE_TOO_LONG or
 * UTF8_INVALID with line and byte offset.
 * @param blocks starting with the first line of the part
 */
export async function* readJsonLines(
  blocks: AsyncIterable<Buffer>,
  file: string,
  what: JsonDocuments,
  lineBytesMax: number,
  rows: InvalidRows,
  part: PartReading = wholeFile(),
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

/** Bytes are null if the line is too long, which is reported as soon as it is known. */
type Line = Omit<JsonBytes, 'bytes'> & { bytes: Buffer | null };

async function* linesOf(
  blocks: AsyncIterable<Buffer>,
  lineBytesMax: number,
  { place, to }: PartReading,
): AsyncGenerator<Line> {
  let byteOffset = place.at;
  let position = byteOffset;
  let parts: Buffer[] = [];
  let length = 0;
  const line = (bytes: Buffer | null): Line => ({ bytes, kind: 'line', number: place.lines + 1, byteOffset });
  const unmarked =
    place.at > 0 ? blocks : withoutMark(blocks, (markBytes) => (byteOffset = position = markBytes));
  for await (const block of unmarked) {
    for (let start = 0; start < block.length;) {
      const end = block.indexOf(newline, start);
      const piece = block.subarray(start, end === -1 ? block.length : end);
      const wasTooLong = length > lineBytesMax;
      length += piece.length;
      if (length > lineBytesMax) {
        parts = [];
        if (!wasTooLong) yield line(null);
      } else parts.push(piece);
      if (end === -1) break;
      if (length <= lineBytesMax) yield line(parts.length === 1 ? parts[0]! : Buffer.concat(parts));
      place.lines++;
      byteOffset = place.at = position + end + 1;
      if (byteOffset >= to) return;
      parts = [];
      length = 0;
      start = end + 1;
    }
    position += block.length;
  }
  if (length > 0 && length <= lineBytesMax) yield line(Buffer.concat(parts));
  place.at = beyondEnd;
}

const newline = 0x0a;

/** Where the first line at or after a byte begins. */
export async function lineFrom(
  blocksFrom: (position: number) => AsyncIterable<Buffer>,
  from: number,
): Promise<number> {
  let position = from - 1;
  for await (const block of blocksFrom(position)) {
    const end = block.indexOf(newline);
    if (end >= 0) return position + end + 1;
    position += block.length;
  }
  return beyondEnd;
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0d;
}
