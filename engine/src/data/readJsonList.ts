import { DataError } from './dataErrors.js';
import type { InvalidRows } from './invalidRows.js';
import { placeOf, piecesOfJson, type JsonBytes, type JsonDocuments } from './jsonTexts.js';
import { withoutMark } from './readText.js';
import type { TextPiece } from './textPieces.js';

/**
 * A list of objects, each with its text in `fields`, read element by element. Throws JSON_INVALID, FIELD_MISSING,
 * DOCUMENT_TOO_LONG or UTF8_INVALID with the number of the element and its byte offset.
 */
export async function* readJsonList(
  blocks: AsyncIterable<Buffer>,
  file: string,
  what: JsonDocuments,
  elementBytesMax: number,
  rows: InvalidRows,
): AsyncGenerator<TextPiece> {
  for await (const element of elementsOf(blocks, file, elementBytesMax)) {
    const pieces = rows.read(() => piecesOfJson(element, file, what));
    if (pieces !== undefined) yield* pieces;
  }
}

const code = (character: string) => character.charCodeAt(0);
const [quote, backslash, comma] = [code('"'), code('\\'), code(',')];
const [openList, closeList, openObject, closeObject] = [code('['), code(']'), code('{'), code('}')];

/** Cuts at the commas of the outer list; what stands between them is judged by whoever reads it. */
async function* elementsOf(
  blocks: AsyncIterable<Buffer>,
  file: string,
  bytesMax: number,
): AsyncGenerator<JsonBytes> {
  let position = 0;
  let number = 1;
  let byteOffset = 0;
  let parts: Buffer[] = [];
  let length = 0;
  /** 0 before the list, 1 in it, more inside of an element; -1 after it. */
  let depth = 0;
  let isInText = false;
  let isEscaped = false;
  const invalid = (at: number, expected: string, got: string) =>
    new DataError('JSON_INVALID', {
      file,
      place: placeOf({ kind: 'element', number, byteOffset: at }),
      expected,
      got,
    });
  const keep = (part: Buffer) => {
    length += part.length;
    if (length > bytesMax)
      throw new DataError('DOCUMENT_TOO_LONG', { file, row: number, bytesMax, got: length });
    parts.push(part);
  };
  const take = (): JsonBytes => {
    const bytes = Buffer.concat(parts);
    [parts, length] = [[], 0];
    return { bytes, kind: 'element', number: number++, byteOffset };
  };
  for await (const block of withoutMark(blocks, (markBytes) => (position = markBytes))) {
    let start = 0;
    for (let i = 0; i < block.length; i++) {
      const byte = block[i]!;
      if (isInText) {
        if (isEscaped) isEscaped = false;
        else if (byte === backslash) isEscaped = true;
        else if (byte === quote) isInText = false;
        continue;
      }
      if (depth <= 0) {
        if (depth === 0 && byte === openList) {
          depth = 1;
          start = i + 1;
          byteOffset = position + start;
        } else if (!isSpace(byte))
          throw invalid(position + i, depth === 0 ? 'a list' : 'nothing after the list', shown(byte));
        continue;
      }
      if (byte === quote) isInText = true;
      else if (byte === openObject || byte === openList) depth++;
      else if (byte === closeObject || (byte === closeList && depth > 1)) {
        if (depth === 1) throw invalid(position + i, 'an element', shown(byte));
        depth--;
      } else if (depth === 1 && (byte === comma || byte === closeList)) {
        keep(block.subarray(start, i));
        const isEmpty = parts.every((part) => part.every(isSpace));
        // A list of nothing is one; an empty place in it is not.
        if (isEmpty && (byte === comma || number > 1)) throw invalid(position + i, 'an element', 'none');
        if (!isEmpty) yield take();
        start = i + 1;
        byteOffset = position + start;
        if (byte === closeList) depth = -1;
      }
    }
    if (depth > 0) keep(block.subarray(start));
    position += block.length;
  }
  if (depth >= 0)
    throw invalid(position, depth === 0 ? 'a list' : 'the end of the list', 'the end of the file');
}

function isSpace(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}

function shown(byte: number): string {
  return byte >= 0x21 && byte < 0x7f
    ? `"${String.fromCharCode(byte)}"`
    : `byte 0x${byte.toString(16).padStart(2, '0')}`;
}
