import { DataError, describeValue } from './dataErrors.js';
import { parseJsonRow, sliceObject, type JsonRow, type ValueSlice } from './jsonFields.js';
import { decodeUtf8, type DocumentFields } from './textPieces.js';

/** A row of JSON: a line of its own, or an element of a list. */
export interface JsonBytes {
  bytes: Buffer;
  kind: 'line' | 'element';
  /** From 1. */
  number: number;
  byteOffset: number;
}

/**
 * The texts of the fields of a row: a name of its own goes before a path with dots. Throws JSONL_LINE_INVALID, JSON_INVALID,
 * FIELD_MISSING or UTF8_INVALID with the place.
 */
export function textsOfJson(row: JsonBytes, file: string, fields: DocumentFields): string[] {
  const place = placeOf(row);
  const invalid = (expected: string, got: string) =>
    row.kind === 'line'
      ? new DataError('JSONL_LINE_INVALID', {
          file,
          line: row.number,
          byteOffset: row.byteOffset,
          expected,
          got,
        })
      : new DataError('JSON_INVALID', { file, place, expected, got });

  let parsed: JsonRow;
  try {
    parsed = parseJsonRow(row.bytes);
  } catch (error) {
    // Names the byte that is not UTF-8, where that is the fault.
    decodeUtf8(row.bytes, file, row.byteOffset, `${row.kind} ${row.number}, `);
    // V8 quotes the whole input; what it found first is enough.
    throw invalid('a JSON object', (error as Error).message.split('\n')[0]!.slice(0, 120));
  }
  if (parsed.kind === 'parsed' && !isObject(parsed.value))
    throw invalid('a JSON object', describeValue(parsed.value));
  const isChat =
    parsed.kind === 'parsed'
      ? Object.hasOwn(parsed.value as object, 'messages')
      : parsed.values.has('messages');
  return fields.map((field, index) => {
    const text =
      parsed.kind === 'parsed'
        ? valueAt(parsed.value, field)
        : slicedValue(row, file, sliceAt(row.bytes, parsed.values, field));
    // A prompt may be empty. A completion must not: there would be nothing to learn.
    if (typeof text !== 'string' || (index === 1 && text === '')) {
      const got = describeValue(text) + (isChat ? chatHint : '');
      throw new DataError('FIELD_MISSING', { file, place, field, got });
    }
    if (/\p{Surrogate}/u.test(text)) throw invalid('whole characters', 'half of a surrogate pair');
    return text;
  });
}

/** How a chat becomes text is the template of a model, which no tokenizer.json has. */
const chatHint = '; the "messages" of a chat are not read: write prompt and completion as text';

export function placeOf({ kind, number, byteOffset }: Omit<JsonBytes, 'bytes'>): string {
  return `${kind} ${number} at byte ${byteOffset}`;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function valueAt(value: unknown, field: string): unknown {
  if (!isObject(value)) return undefined;
  if (Object.hasOwn(value, field)) return value[field];
  for (const [name, rest] of splits(field)) {
    const found = Object.hasOwn(value, name) ? valueAt(value[name], rest) : undefined;
    if (found !== undefined) return found;
  }
  return undefined;
}

function sliceAt(
  bytes: Buffer,
  values: ReadonlyMap<string, ValueSlice>,
  field: string,
): ValueSlice | undefined {
  const own = values.get(field);
  if (own !== undefined) return own;
  for (const [name, rest] of splits(field)) {
    const outer = values.get(name);
    const inner = outer && sliceObject(bytes, outer.start, outer.end);
    const found = inner && sliceAt(bytes, inner, rest);
    if (found) return found;
  }
  return undefined;
}

/** `a.b.c` as `a` and `b.c`, then `a.b` and `c`. */
function* splits(field: string): Generator<[name: string, rest: string]> {
  for (let dot = field.indexOf('.'); dot >= 0; dot = field.indexOf('.', dot + 1))
    yield [field.slice(0, dot), field.slice(dot + 1)];
}

/** The value of a slice. What is not JSON is no text either: it is described as the number, list or object that it resembles. */
function slicedValue(row: JsonBytes, file: string, slice: ValueSlice | undefined): unknown {
  if (slice === undefined) return undefined;
  const bytes = row.bytes.subarray(slice.start, slice.end);
  const json = decodeUtf8(bytes, file, row.byteOffset + slice.start, `${row.kind} ${row.number}, `);
  try {
    return JSON.parse(json) as unknown;
  } catch {
    return json.startsWith('{') ? {} : json.startsWith('[') ? [] : Number(json);
  }
}
