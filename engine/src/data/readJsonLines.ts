import { DataError } from './dataErrors.js';
import type { InvalidRows } from './invalidRows.js';
import { textsOfJson, type JsonBytes } from './jsonTexts.js';
import { withoutMark } from './readText.js';
import { piecesOfFields, type DocumentFields, type TextPiece } from './textPieces.js';

/**
 * Every line is an object with its text in `fields`; blank lines are skipped. Throws JSONL_LINE_INVALID, FIELD_MISSING,
 * LINE_TOO_LONG or UTF8_INVALID with line and byte offset.
 */
export async function* readJsonLines(
  blocks: AsyncIterable<Buffer>,
  file: string,
  fields: DocumentFields,
  lineBytesMax: number,
  rows: InvalidRows,
): AsyncGenerator<TextPiece> {
  for await (const line of linesOf(blocks, lineBytesMax)) {
    if (line.bytes?.every(isBlank)) continue;
    const texts = rows.read(() => {
      const { bytes, number, byteOffset } = line;
      if (bytes === null)
        throw new DataError('LINE_TOO_LONG', { file, line: number, byteOffset, bytesMax: lineBytesMax });
      return textsOfJson({ ...line, bytes }, file, fields);
    });
    if (texts !== undefined) yield* piecesOfFields(texts);
  }
}

/** Bytes of null: the line is longer than any may be, and is reported as soon as it is. */
type Line = Omit<JsonBytes, 'bytes'> & { bytes: Buffer | null };

async function* linesOf(blocks: AsyncIterable<Buffer>, lineBytesMax: number): AsyncGenerator<Line> {
  let number = 1;
  let byteOffset = 0;
  let position = 0;
  let parts: Buffer[] = [];
  let length = 0;
  const line = (bytes: Buffer | null): Line => ({ bytes, kind: 'line', number, byteOffset });
  for await (const block of withoutMark(blocks, (markBytes) => (byteOffset = position = markBytes))) {
    for (let start = 0; start < block.length;) {
      const end = block.indexOf(0x0a, start);
      const part = block.subarray(start, end === -1 ? block.length : end);
      const wasTooLong = length > lineBytesMax;
      length += part.length;
      if (length > lineBytesMax) {
        parts = [];
        if (!wasTooLong) yield line(null);
      } else parts.push(part);
      if (end === -1) break;
      if (length <= lineBytesMax) yield line(parts.length === 1 ? parts[0]! : Buffer.concat(parts));
      number++;
      byteOffset = position + end + 1;
      parts = [];
      length = 0;
      start = end + 1;
    }
    position += block.length;
  }
  if (length > 0 && length <= lineBytesMax) yield line(Buffer.concat(parts));
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0d;
}
