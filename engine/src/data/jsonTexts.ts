import type { ChatTemplate } from './chatTemplate.js';
import { DataError, describeValue, listNames } from './dataErrors.js';
import { parseJsonRow, sliceObject, type JsonRow, type ValueSlice } from './jsonFields.js';
import {
  decodeUtf8,
  pieceOfChat,
  piecesOfFields,
  type DocumentFields,
  type TextPiece,
} from './textPieces.js';

/** A row of JSON: a line, or an element of a list. */
export interface JsonBytes {
  bytes: Buffer;
  kind: 'line' | 'element';
  /** From 1. */
  number: number;
  byteOffset: number;
}

/** What a row of JSON contains: texts in fields, or a chat in a single field. */
export interface JsonDocuments {
  fields: DocumentFields;
  chat: ChatTemplate | null;
}

/** The document in a row. Throws field errors, or CHAT_INVALID. */
export function piecesOfJson(
  row: JsonBytes,
  file: string,
  { fields, chat }: JsonDocuments,
): Iterable<TextPiece> {
  if (chat === null) return piecesOfFields(textsOfJson(row, file, fields));
  const parsed = parseRow(row, file);
  const [messages, tools] = [fields[0], 'tools'].map((field) => fieldOf(parsed, row, file, field));
  return [pieceOfChat(chat.render(messages, tools, { file, place: placeOf(row) }))];
}

/**
 * The texts in a row's fields: an exact name has precedence over a dotted path. Throws JSONL_LINE_INVALID, JSON_INVALID, FIELD_MISSING or
 * UTF8_INVALID with the position.
 */
export function textsOfJson(row: JsonBytes, file: string, fields: DocumentFields): string[] {
  const place = placeOf(row);
  const parsed = parseRow(row, file);
  const isChat =
    parsed.kind === 'parsed'
      ? Object.hasOwn(parsed.value as object, 'messages')
      : parsed.values.has('messages');
  return fields.map((field, index) => {
    const text = fieldOf(parsed, row, file, field);
    // A prompt may be empty. A completion may not: there would be nothing to learn.
    if (typeof text !== 'string' || (index === 1 && text === '')) {
      const found = text === undefined ? `fields ${listNames(namesIn(parsed))}` : describeValue(text);
      const got = found + (isChat ? chatHint : '');
      throw new DataError('FIELD_MISSING', { file, place, field, got });
    }
    if (/\p{Surrogate}/u.test(text))
      throw invalidRow(row, file, 'whole characters', 'half of a surrogate pair');
    return text;
  });
}

/** The object in a row. */
function parseRow(row: JsonBytes, file: string): JsonRow {
  let parsed: JsonRow;
  try {
    parsed = parseJsonRow(row.bytes);
  } catch (error) {
    // Reports the invalid byte, if invalid UTF-8 is the problem.
    decodeUtf8(row.bytes, file, row.byteOffset, `${row.kind} ${row.number}, `);
    // V8 quotes the whole input; the beginning of its message is enough.
    const problem = (error as Error).message.split('\n')[0]!.slice(0, 120);
    throw invalidRow(row, file, 'a JSON object', `what is not JSON: ${problem}`);
  }
  if (parsed.kind === 'parsed' && !isObject(parsed.value))
    throw invalidRow(row, file, 'a JSON object', describeValue(parsed.value));
  return parsed;
}

function namesIn(parsed: JsonRow): string[] {
  return parsed.kind === 'parsed' ? Object.keys(parsed.value as object) : [...parsed.values.keys()];
}

function fieldOf(parsed: JsonRow, row: JsonBytes, file: string, field: string): unknown {
  return parsed.kind === 'parsed'
    ? valueAt(parsed.value, field)
    : slicedValue(row, file, sliceAt(row.bytes, parsed.values, field));
}

function invalidRow(row: JsonBytes, file: string, expected: string, got: string): DataError {
  const { kind, number: line, byteOffset } = row;
  return kind === 'line'
    ? new DataError('JSONL_LINE_INVALID', { file, line, byteOffset, expected, got })
    : new DataError('JSON_INVALID', { file, place: placeOf(row), expected, got });
}

/** Chats are converted to text by a model's template, which has to be configured. */
const chatHint = '; the "messages" of a chat are read where messages_field names them';

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

/**
 * Parses the value of a slice. If that is not JSON, it is not a text either, and is described as the number, list or object that it
 * resembles.
 */
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
