import { isUtf8 } from 'node:buffer';
import { ServiceError } from '../errors.js';
import type { FieldDescriptor, MessageDescriptor } from './descriptors.js';
import { WireFault, WireReader, wireTypes } from './wire.js';

/** Numbers of FieldDescriptorProto.Type. */
const types = { double: 1, float: 2, int64: 3, uint64: 4, fixed64: 6, fixed32: 7, string: 9, message: 11 };
const bytesType = 12;
const sfixed32 = 15;
const sfixed64 = 16;
const sint64 = 18;

/** Nesting limit of messages, the same as in the generated decoders. */
const depthMax = 100;

export interface MessageLimits {
  /** Fields and list entries of a message, including those of nested messages. One list may have a fifth of them. */
  fieldsMax: number;
  /** Length limit of a text; longer ones are not even read. */
  textBytesMax: number;
}

/** Fields whose text may be longer, and up to how many bytes; some are limited only by the size of the message. */
const longTexts = new Map([
  ['relora.v1.EvaluateModelRequest.questions', Infinity],
  ['relora.v1.NamedEvaluationSpec.questions', Infinity],
  ['relora.v1.HuggingFaceTokenizer.tokenizer_config_json', Infinity],
  ['relora.v1.GenerateTextRequest.prompt', 1 << 20],
  ['relora.v1.HuggingFaceTokenizer.tokenizer_json', Infinity],
]);

/**
 * Reads a message without building it, so that the generated decoder can rely on it: it is complete, its fields have the types of the
 * contract, text is UTF-8 without NUL and not too long, integers fit into a double exactly, and the number of parts is limited. Throws
 * MESSAGE_UNREADABLE, MESSAGE_TOO_LARGE or REQUEST_INVALID with the path of the field.
 */
export function checkMessage(
  bytes: Uint8Array,
  typeName: string,
  messages: ReadonlyMap<string, MessageDescriptor>,
  limits: MessageLimits,
): void {
  const check = new MessageCheck(messages, limits);
  try {
    check.fields(new WireReader(bytes), typeName);
  } catch (error) {
    if (!(error instanceof WireFault)) throw error;
    const { at, expected, got } = error;
    throw new ServiceError('MESSAGE_UNREADABLE', { field: pathOf(check.path), at, expected, got });
  }
}

/** Reads one message. */
class MessageCheck {
  /** Path of the current field. */
  readonly path: { name: string; index: number }[] = [];
  private readonly entriesMax: number;
  private fieldCount = 0;

  constructor(
    private readonly messages: ReadonlyMap<string, MessageDescriptor>,
    private readonly limits: MessageLimits,
  ) {
    this.entriesMax = Math.ceil(limits.fieldsMax / 5);
  }

  fields(reader: WireReader, type: string): void {
    const { path } = this;
    const fields = this.messages.get(type);
    if (path.length > depthMax)
      throw new WireFault(reader.at, `at most ${depthMax} messages inside each other`, 'more');
    /** Number of entries read of each list, only for the path. */
    const indexes = new Map<number, number>();
    while (reader.at < reader.end) {
      const { number, wireType } = reader.key();
      this.count();
      const field = fields?.get(number);
      if (field === undefined) {
        reader.skipValue(wireType); // a field of a newer client
        continue;
      }
      const index = field.isRepeated ? (indexes.get(number) ?? -1) + 1 : -1;
      if (field.isRepeated) indexes.set(number, index);
      path.push({ name: field.name, index });
      if (index >= this.entriesMax) throw this.listTooLong();
      this.value(reader, wireType, field, type);
      path.pop();
    }
  }

  private value(reader: WireReader, wireType: number, field: FieldDescriptor, type: string): void {
    const expected = wireTypeOf(field.type);
    if (wireType === wireTypes.bytes && field.isRepeated && expected !== wireTypes.bytes)
      return this.packedNumbers(reader.stretch(), field.type);
    if (wireType !== expected)
      throw new WireFault(reader.at, `a value of wire type ${expected}`, `one of wire type ${wireType}`);
    if (wireType !== wireTypes.bytes) return this.number(reader, field.type);
    const inner = reader.stretch();
    if (field.type === types.message) this.fields(inner, field.typeName);
    else if (field.type === types.string) this.text(inner, field, type);
  }

  private packedNumbers(packed: WireReader, type: number): void {
    for (let entryCount = 0; packed.at < packed.end; entryCount++) {
      if (entryCount >= this.entriesMax) throw this.listTooLong();
      this.count();
      this.number(packed, type);
    }
  }

  private text(inner: WireReader, field: FieldDescriptor, type: string): void {
    const text = inner.slice();
    const bytesMax =
      text.length > this.limits.textBytesMax
        ? (longTexts.get(`${type}.${field.name}`) ?? this.limits.textBytesMax)
        : Infinity;
    if (text.length > bytesMax) throw this.wrongValue(`at most ${bytesMax} bytes`, String(text.length));
    if (!isUtf8(text)) throw new WireFault(inner.at, 'text in UTF-8', 'other bytes');
    // No store holds it, not even to compare with.
    if (text.includes(0)) throw this.wrongValue('text without control characters', 'U+0000');
    // The decoder puts the entries of a map into an object, where this key would set the prototype and the entry would be lost.
    if (field.isMapKey && Buffer.from(text).toString() === '__proto__')
      throw this.wrongValue('another key', '"__proto__"');
  }

  /** A number that is too large to be exact is a wrong value, not a broken message. */
  private number(reader: WireReader, type: number): void {
    const value = readExact(reader, type);
    if (value === undefined || (value <= Number.MAX_SAFE_INTEGER && value >= Number.MIN_SAFE_INTEGER)) return;
    const expected = `a whole number from ${Number.MIN_SAFE_INTEGER} to ${Number.MAX_SAFE_INTEGER}`;
    throw this.wrongValue(expected, String(value));
  }

  private count(): void {
    const { fieldsMax } = this.limits;
    if (++this.fieldCount > fieldsMax)
      throw new ServiceError('MESSAGE_TOO_LARGE', { limit: fieldsMax, unit: 'fields and list entries' });
  }

  private listTooLong(): ServiceError<'REQUEST_INVALID'> {
    this.path.push({ name: this.path.pop()!.name, index: -1 });
    return this.wrongValue(`at most ${this.entriesMax} entries`, 'more');
  }

  /** For a well-formed value that is not allowed. */
  private wrongValue(expected: string, got: string): ServiceError<'REQUEST_INVALID'> {
    return new ServiceError('REQUEST_INVALID', { problems: [{ field: pathOf(this.path), expected, got }] });
  }
}

/** Reads a number; returns the value only of types that a double may not represent exactly. */
function readExact(reader: WireReader, type: number): bigint | undefined {
  switch (type) {
    case types.int64:
    case types.uint64:
    case sint64: {
      const start = reader.at;
      reader.varint();
      // Seven bytes have 49 bits of content: exact in any type.
      if (reader.at - start <= 7) return undefined;
      const bits = new WireReader(reader.bytes, start, reader.at).bits();
      if (type === types.uint64) return bits;
      return type === types.int64 ? BigInt.asIntN(64, bits) : (bits >> 1n) ^ -(bits & 1n);
    }
    case types.fixed64:
    case sfixed64: {
      const start = reader.at;
      reader.skip(8);
      const view = reader.view();
      return type === sfixed64 ? view.getBigInt64(start, true) : view.getBigUint64(start, true);
    }
    default:
      reader.skipValue(wireTypeOf(type));
      return undefined;
  }
}

function wireTypeOf(type: number): number {
  if (type === types.double || type === types.fixed64 || type === sfixed64) return wireTypes.fixed64;
  if (type === types.float || type === types.fixed32 || type === sfixed32) return wireTypes.fixed32;
  if (type === types.string || type === types.message || type === bytesType) return wireTypes.bytes;
  return wireTypes.varint;
}

/** For example `spec.adapter.module_ranks[3].rank`; an entry of a map is a message with key and value. */
function pathOf(path: readonly { name: string; index: number }[]): string {
  return path
    .slice(0, 12)
    .map(({ name, index }) => (index < 0 ? name : `${name}[${index}]`))
    .join('.');
}
