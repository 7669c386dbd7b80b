import { EngineError } from '../engineError.js';
import { storedTypes, type StoredType } from './halfFloats.js';

/** An invalid safetensors file; the message names file, tensor, what was expected and what was found. */
export class SafetensorsInvalid extends EngineError {
  constructor(file: string, problem: string) {
    super('SAFETENSORS_INVALID', `${file} ${problem}`);
  }
}

/** Longest header; parsing takes about ten times its memory. */
export const headerBytesMax = 16 << 20;
export const tensorCountMax = 100_000;

export interface StoredTensor {
  dtype: StoredType;
  shape: number[];
  /** Bytes begin … end of the file's data part. */
  begin: number;
  end: number;
}

/**
 * Parses a header and checks everything that the format requires, and more: known types, integer shapes that match the length, tensors
 * contiguous without gap, overlap or rest, no duplicate name. No unchecked number determines an allocation.
 */
export function parseHeader(text: string, dataBytes: number, file: string): Map<string, StoredTensor> {
  const invalid = (problem: string) => new SafetensorsInvalid(file, problem);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw invalid(`has a header that is not JSON: ${(error as Error).message}`);
  }
  if (!isObject(json)) throw invalid('has a header that is not an object');
  checkMetadata(json.__metadata__, invalid);
  const duplicate = duplicateKey(text);
  if (duplicate !== null) throw invalid(`names ${JSON.stringify(duplicate)} twice in its header`);

  const tensors = new Map<string, StoredTensor>();
  for (const name of Object.keys(json)) {
    if (name !== '__metadata__') tensors.set(name, parseEntry(name, json[name], invalid));
  }
  if (tensors.size > tensorCountMax)
    throw invalid(`has ${tensors.size} tensors, the limit is ${tensorCountMax}`);

  let position = 0;
  for (const [name, tensor] of [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end)) {
    if (tensor.begin !== position)
      throw invalid(
        `has the tensor ${name} at byte ${tensor.begin}, byte ${position} was expected: there is a hole or an overlap`,
      );
    position = tensor.end;
  }
  if (position !== dataBytes) throw invalid(`should have ${position} bytes of tensors, it has ${dataBytes}`);
  return tensors;
}

function checkMetadata(metadata: unknown, invalid: (problem: string) => Error): void {
  if (metadata === undefined) return;
  if (!isObject(metadata) || !Object.values(metadata).every((value) => typeof value === 'string')) {
    throw invalid('has a __metadata__ that is not an object of texts');
  }
}

function parseEntry(name: string, entry: unknown, invalid: (problem: string) => Error): StoredTensor {
  if (!isObject(entry)) throw invalid(`has no description of the tensor ${name}`);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string' || !Object.hasOwn(storedTypes, dtype)) {
    throw invalid(
      `has the tensor ${name} of type ${shown(dtype)}, ${Object.keys(storedTypes).join(', ')} are known`,
    );
  }
  if (!Array.isArray(shape) || shape.length > 8 || !shape.every((size) => isSize(size) && size > 0)) {
    throw invalid(
      `has the tensor ${name} of shape ${shown(shape)}, at most 8 whole numbers above 0 were expected`,
    );
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize))
    throw invalid(`has the tensor ${name} at ${shown(offsets)}, two whole numbers were expected`);
  const [begin, end] = offsets as [number, number];
  let bytes: number = storedTypes[dtype as StoredType];
  for (const size of shape) bytes *= size;
  if (!Number.isSafeInteger(bytes) || end - begin !== bytes) {
    throw invalid(
      `has the tensor ${name} of shape [${shape.join(', ')}] and type ${dtype}, which takes ${bytes} bytes, in ${end - begin}`,
    );
  }
  return { dtype: dtype as StoredType, shape, begin, end };
}

/** Shortened for a message. */
function shown(value: unknown): string {
  return (JSON.stringify(value) ?? 'nothing').slice(0, 100);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isSize(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && !Object.is(value, -0);
}

/** JSON.parse silently keeps the last of equal keys; the format forbids duplicates. `text` must be valid JSON. */
function duplicateKey(text: string): string | null {
  /** Keys of each open object; null for an open list. */
  const open: (Set<string> | null)[] = [];
  let mayBeKey = false;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '{' || character === '[') {
      open.push(character === '{' ? new Set() : null);
      mayBeKey = character === '{';
    } else if (character === '}' || character === ']') open.pop();
    else if (character === ':') mayBeKey = false;
    else if (character === ',') mayBeKey = open.at(-1) !== null;
    else if (character === '"') {
      // Not a regular expression: a string of megabytes would overflow its stack.
      const start = i;
      for (i++; text[i] !== '"'; i++) if (text[i] === '\\') i++;
      const keys = open.at(-1);
      if (!mayBeKey || !keys) continue;
      const key = JSON.parse(text.slice(start, i + 1)) as string;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return null;
}
