import { DataError } from './dataErrors.js';
import { beyondEnd, wholeFile, type PartReading } from './filePart.js';
import type { InvalidRows } from './invalidRows.js';
import { placeOf, piecesOfJson, type JsonBytes, type JsonDocuments } from './jsonTexts.js';
import { withoutMark } from './readText.js';
import type { TextPiece } from './textPieces.js';

/**
 * A list of objects, each with its text in `fields`, read element by element. Throws JSON_INVALID, FIELD_MISSING, DOCUMENT_TOO_LONG or
 * UTF8_INVALID with the number of the element and its byte offset.
 * @param blocks starting with the first element of the part
 */
export async function* readJsonList(
  blocks: AsyncIterable<Buffer>,
  file: string,
  what: JsonDocuments,
  elementBytesMax: number,
  rows: InvalidRows,
  part: PartReading = wholeFile(),
): AsyncGenerator<TextPiece> {
  for await (const element of elementsOf(blocks, file, elementBytesMax, part)) {
    const pieces = rows.read(() => piecesOfJson(element, file, what));
    if (pieces !== undefined) yield* pieces;
  }
}

const code = (character: string) => character.charCodeAt(0);
const [quote, backslash, comma] = [code('"'), code('\\'), code(',')];
const [openList, closeList, openObject, closeObject] = [code('['), code(']'), code('{'), code('}')];

/** Splits at the commas of the outer list; the elements themselves are checked by their reader. */
async function* elementsOf(
  blocks: AsyncIterable<Buffer>,
  file: string,
  bytesMax: number,
  { place, to }: PartReading,
): AsyncGenerator<JsonBytes> {
  const isInside = place.at > 0;
  let position = place.at;
  let byteOffset = position;
  let parts: Buffer[] = [];
  let length = 0;
  /** 0 before the list, 1 in it, more inside of an element; -1 after it. */
  let depth = isInside ? 1 : 0;
  let isInText = false;
  let isEscaped = false;
  const invalid = (at: number, expected: string, got: string) =>
    new DataError('JSON_INVALID', {
      file,
      place: placeOf({ kind: 'element', number: place.rows + 1, byteOffset: at }),
      expected,
      got,
    });
  const keep = (part: Buffer) => {
    length += part.length;
    if (length > bytesMax)
      throw new DataError('DOCUMENT_TOO_LONG', { file, row: place.rows + 1, bytesMax, got: length });
    parts.push(part);
  };
  const take = (): JsonBytes => {
    const bytes = Buffer.concat(parts);
    [parts, length] = [[], 0];
    return { bytes, kind: 'element', number: ++place.rows, byteOffset };
  };
  const unmarked = isInside ? blocks : withoutMark(blocks, (markBytes) => (position = markBytes));
  for await (const block of unmarked) {
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
        // An empty list is valid; an empty element is not.
        if (isEmpty && (byte === comma || isInside || place.rows > 0))
          throw invalid(position + i, 'an element', 'none');
        if (!isEmpty) yield take();
        start = i + 1;
        byteOffset = position + start;
        if (byte === closeList) depth = -1;
        else if ((place.at = byteOffset) >= to) return;
      }
    }
    if (depth > 0) keep(block.subarray(start));
    position += block.length;
  }
  if (depth >= 0)
    throw invalid(position, depth === 0 ? 'a list' : 'the end of the list', 'the end of the file');
  place.at = beyondEnd;
}

/**
 * Where the first element at or after a byte appears to begin: after the first comma at the lowest nesting depth found. This is correct for
 * a valid list, unless no element begins there. Whether the first byte is inside of a string is not known at first: both cases are followed
 * until one of them would have a character outside of strings that JSON does not allow there.
 */
export async function elementFrom(
  blocksFrom: (position: number) => AsyncIterable<Buffer>,
  from: number,
): Promise<number> {
  const follow = () => ({ isRefuted: false, depth: 0, depthOfComma: Infinity, at: beyondEnd });
  // Assuming that the first byte is outside of a string, and that it is inside.
  const both = [follow(), follow()] as const;
  let position = from - 2;
  let previous = backslash; // the byte after a backslash may or may not be escaped: start after another byte
  let isCounting = false;
  let isEscaped = false;
  let quotes = 0;
  for await (const block of blocksFrom(position)) {
    for (let i = 0; i < block.length; i++) {
      const byte = block[i]!;
      isCounting ||= previous !== backslash;
      previous = byte;
      if (!isCounting) continue;
      if (isEscaped) isEscaped = false;
      else if (byte === backslash) isEscaped = true;
      else if (byte === quote) quotes ^= 1;
      else {
        const outside = both[quotes as 0 | 1];
        if (outside.isRefuted) i = beforeMark(block, i);
        else if (standsOutside[byte] === 0) outside.isRefuted = true;
        else if (byte === openObject || byte === openList) outside.depth++;
        else if (byte === closeObject || byte === closeList) outside.depth--;
        else if (byte === comma && outside.depth < outside.depthOfComma) {
          outside.depthOfComma = outside.depth;
          outside.at = position + i + 1;
        }
      }
    }
    position += block.length;
  }
  return (both[0].isRefuted ? both[1] : both[0]).at;
}

/**
 * The last byte before the next quotation mark or backslash, or of the block: a fast way through strings, which most of a list consists of.
 */
function beforeMark(block: Buffer, start: number): number {
  let at = start + 1;
  while (at < block.length && block[at] !== quote && block[at] !== backslash) at++;
  return at - 1;
}

/** By byte: 1 if JSON allows it outside of strings. */
const standsOutside = new Uint8Array(256);
for (const character of '\t\n\v\f\r ,:{}[]0123456789+-.eEtrufalsn') standsOutside[code(character)] = 1;

function isSpace(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}

function shown(byte: number): string {
  return byte >= 0x21 && byte < 0x7f
    ? `"${String.fromCharCode(byte)}"`
    : `byte 0x${byte.toString(16).padStart(2, '0')}`;
}
