import { WireReader, wireTypes } from './wire.js';

/** A field of a message, from its descriptor. */
export interface FieldDescriptor {
  name: string;
  /** Number in FieldDescriptorProto.Type. */
  type: number;
  isRepeated: boolean;
  /** Whether it is the key of a map's entries. */
  isMapKey: boolean;
  /** Full name of a message or enum. */
  typeName: string;
}

export type MessageDescriptor = ReadonlyMap<number, FieldDescriptor>;

export interface FileDescriptor {
  name: string;
  bytes: Uint8Array;
  /** Full names of everything that the file defines: messages, enums, services and methods. */
  symbols: string[];
}

/** What a FileDescriptorSet defines. */
export interface Descriptors {
  files: FileDescriptor[];
  /** By full name. */
  messages: ReadonlyMap<string, MessageDescriptor>;
  /** Full name of the request of each method, by path. */
  requests: ReadonlyMap<string, string>;
}

/** Reads a serialized FileDescriptorSet, as far as reflection and the checks of messages need it. */
export function readDescriptors(set: Uint8Array): Descriptors {
  const messages = new Map<string, MessageDescriptor>();
  const requests = new Map<string, string>();
  const addMessage = (bytes: Uint8Array, scope: string, symbols: string[]): void => {
    const parts = partsOf(bytes);
    const fullName = `${scope}${textOf(parts, 1)}`;
    symbols.push(fullName);
    const options = partsOf(all(parts, 7)[0] ?? new Uint8Array());
    const isMapEntry = numberOf(options, 7) === 1;
    messages.set(fullName, new Map(all(parts, 2).map((field) => readField(field, isMapEntry))));
    for (const nested of all(parts, 3)) addMessage(nested, `${fullName}.`, symbols);
    for (const nested of all(parts, 4)) symbols.push(`${fullName}.${textOf(partsOf(nested), 1)}`);
  };
  const addService = (bytes: Uint8Array, scope: string, symbols: string[]): void => {
    const parts = partsOf(bytes);
    const fullName = `${scope}${textOf(parts, 1)}`;
    symbols.push(fullName);
    for (const method of all(parts, 2).map(partsOf)) {
      symbols.push(`${fullName}.${textOf(method, 1)}`);
      requests.set(`/${fullName}/${textOf(method, 1)}`, textOf(method, 2).slice(1));
    }
  };
  const files = all(partsOf(set), 1).map((bytes): FileDescriptor => {
    const parts = partsOf(bytes);
    const scope = `${textOf(parts, 2)}.`;
    const symbols: string[] = [];
    for (const message of all(parts, 4)) addMessage(message, scope, symbols);
    for (const type of all(parts, 5)) symbols.push(`${scope}${textOf(partsOf(type), 1)}`);
    for (const service of all(parts, 6)) addService(service, scope, symbols);
    return { name: textOf(parts, 1), bytes, symbols };
  });
  return { files, messages, requests };
}

type Parts = Map<number, (number | Uint8Array)[]>;

function readField(bytes: Uint8Array, ofMapEntry: boolean): [number, FieldDescriptor] {
  const parts = partsOf(bytes);
  const labelRepeated = 3;
  return [
    numberOf(parts, 3),
    {
      name: textOf(parts, 1),
      type: numberOf(parts, 5),
      isRepeated: numberOf(parts, 4) === labelRepeated,
      isMapKey: ofMapEntry && numberOf(parts, 3) === 1,
      typeName: textOf(parts, 6).slice(1),
    },
  ];
}

/** Values in a message, by field number. */
function partsOf(bytes: Uint8Array): Parts {
  const parts: Parts = new Map();
  for (const reader = new WireReader(bytes); reader.at < reader.end;) {
    const { number, wireType } = reader.key();
    const values = parts.get(number) ?? [];
    parts.set(number, values);
    if (wireType === wireTypes.varint) values.push(reader.varint());
    else if (wireType === wireTypes.bytes) values.push(reader.stretch().slice());
    else reader.skipValue(wireType);
  }
  return parts;
}

function all(parts: Parts, number: number): Uint8Array[] {
  return (parts.get(number) ?? []).filter((value) => value instanceof Uint8Array);
}

function textOf(parts: Parts, number: number): string {
  return Buffer.from(all(parts, number).at(-1) ?? []).toString('utf8');
}

function numberOf(parts: Parts, number: number): number {
  return (parts.get(number) ?? []).filter((value) => typeof value === 'number').at(-1) ?? 0;
}
