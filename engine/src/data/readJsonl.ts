import { DataError } from './dataError.js';
import type { DataLimits } from './limits.js';
import { checkWellFormed, decodeUtf8, openSource, withoutByteOrderMark, type DocumentPiece, type SourceFile } from './sourceFile.js';

const readBytes = 1 << 20;

/** Each line of a JSONL file is one document, the text in `field`. Empty lines are passed over. */
export async function* readJsonl(file: SourceFile, field: string, limits: DataLimits): AsyncGenerator<DocumentPiece> {
  let lineNumber = 0;
  for await (const { bytes, offset } of lines(file, limits)) {
    lineNumber++;
    const place = `${file.name} line ${lineNumber} (byte ${offset})`;
    const line = decodeUtf8(lineNumber === 1 ? withoutByteOrderMark(bytes) : bytes, file.name, offset);
    if (line.trim() === '') continue;
    yield { text: checkWellFormed(textOf(line, field, place), place), isLast: true };
  }
}

function textOf(line: string, field: string, place: string): string {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw new DataError('JSONL_LINE_INVALID', `${place} is not JSON: ${(error as Error).message}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new DataError('JSONL_LINE_INVALID', `${place} should be an object with the field "${field}", it is ${describe(value)}`);
  }
  const text = Object.hasOwn(value, field) ? (value as Record<string, unknown>)[field] : undefined;
  if (typeof text !== 'string') {
    throw new DataError('FIELD_MISSING', `${place} should have a text in the field "${field}", it has ${describe(text)}`);
  }
  return text;
}

function describe(value: unknown): string {
  if (value === undefined) return 'none';
  if (value === null) return 'null';
  return Array.isArray(value) ? 'an array' : typeof value === 'object' ? 'an object' : `a ${typeof value}`;
}

async function* lines(file: SourceFile, limits: DataLimits): AsyncGenerator<{ bytes: Buffer; offset: number }> {
  const { handle, sizeBytes } = await openSource(file);
  try {
    let parts: Buffer[] = [];
    let partsBytes = 0;
    let lineOffset = 0;
    for (let position = 0; position < sizeBytes; ) {
      const buffer = Buffer.allocUnsafe(Math.min(readBytes, sizeBytes - position));
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, position);
      if (bytesRead === 0) break;
      position += bytesRead;
      let rest = buffer.subarray(0, bytesRead);
      for (let end = rest.indexOf(0x0a); end >= 0; end = rest.indexOf(0x0a)) {
        yield { bytes: Buffer.concat([...parts, rest.subarray(0, end)]), offset: lineOffset };
        lineOffset += partsBytes + end + 1;
        parts = [];
        partsBytes = 0;
        rest = rest.subarray(end + 1);
      }
      if (rest.length > 0) {
        parts.push(rest);
        partsBytes += rest.length;
      }
      if (partsBytes > limits.lineBytesMax) {
        throw new DataError('LINE_TOO_LONG', `${file.name} has a line of more than ${limits.lineBytesMax} bytes at byte ${lineOffset}`);
      }
    }
    if (partsBytes > 0) yield { bytes: Buffer.concat(parts), offset: lineOffset };
  } finally {
    await handle.close();
  }
}
