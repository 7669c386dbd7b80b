import { DataError, describeValue } from './dataErrors.js';
import { byteOrderMarkBytes } from './readText.js';
import type { RegularFile } from './regularFile.js';
import { decodeUtf8, piecesOfFields, type DocumentFields, type TextPiece } from './textPieces.js';

const blockBytes = 1 << 20;

interface Line {
  bytes: Buffer;
  /** From 1. */
  number: number;
  byteOffset: number;
}

/**
 * Every line is an object with its text in `fields`; blank lines are skipped. Throws JSONL_LINE_INVALID, FIELD_MISSING,
 * LINE_TOO_LONG or UTF8_INVALID with line and byte offset.
 */
export async function* readJsonLines(
  file: RegularFile,
  fields: DocumentFields,
  lineBytesMax: number,
): AsyncGenerator<TextPiece> {
  for await (const line of linesOf(file, lineBytesMax)) {
    if (line.bytes.every(isBlank)) continue;
    yield* piecesOfFields(textsOf(line, file.name, fields));
  }
}

function textsOf(line: Line, file: string, fields: DocumentFields): string[] {
  const place = { file, line: line.number, byteOffset: line.byteOffset };
  const json = decodeUtf8(line.bytes, file, line.byteOffset, `line ${line.number}, `);
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (error) {
    // V8 quotes the whole input; what it found first is enough.
    const got = (error as Error).message.split('\n')[0]!.slice(0, 120);
    throw new DataError('JSONL_LINE_INVALID', { ...place, expected: 'a JSON object', got });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new DataError('JSONL_LINE_INVALID', {
      ...place,
      expected: 'a JSON object',
      got: describeValue(value),
    });
  }
  return fields.map((field, index) => {
    const text: unknown = Object.hasOwn(value, field) ? (value as Record<string, unknown>)[field] : undefined;
    // A prompt may be empty. A completion must not: there would be nothing to learn.
    if (typeof text !== 'string' || (index === 1 && text === '')) {
      throw new DataError('FIELD_MISSING', {
        file,
        place: `line ${line.number} at byte ${line.byteOffset}`,
        field,
        got: describeValue(text) + (Object.hasOwn(value, 'messages') ? chatHint : ''),
      });
    }
    if (/\p{Surrogate}/u.test(text)) {
      throw new DataError('JSONL_LINE_INVALID', {
        ...place,
        expected: 'whole characters',
        got: 'half of a surrogate pair',
      });
    }
    return text;
  });
}

/** How a chat becomes text is the template of a model, which no tokenizer.json has. */
const chatHint = '; the "messages" of a chat are not read: write prompt and completion as text';

async function* linesOf(file: RegularFile, lineBytesMax: number): AsyncGenerator<Line> {
  let position: number = await byteOrderMarkBytes(file);
  let number = 1;
  let byteOffset = position;
  let parts: Buffer[] = [];
  let length = 0;
  const add = (part: Buffer) => {
    length += part.length;
    if (length > lineBytesMax)
      throw new DataError('LINE_TOO_LONG', {
        file: file.name,
        line: number,
        byteOffset,
        bytesMax: lineBytesMax,
      });
    parts.push(part);
  };
  while (position < file.sizeBytes) {
    const block = await file.read(position, Math.min(blockBytes, file.sizeBytes - position));
    for (let start = 0; start < block.length;) {
      const end = block.indexOf(0x0a, start);
      if (end === -1) {
        add(block.subarray(start));
        break;
      }
      add(block.subarray(start, end));
      yield { bytes: parts.length === 1 ? parts[0]! : Buffer.concat(parts), number, byteOffset };
      number++;
      byteOffset = position + end + 1;
      parts = [];
      length = 0;
      start = end + 1;
    }
    position += block.length;
  }
  if (length > 0) yield { bytes: Buffer.concat(parts), number, byteOffset };
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0d;
}
