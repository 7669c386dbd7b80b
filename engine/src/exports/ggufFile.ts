import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';

/** GGUF tensor types that we write: type number, values per block and bytes per block. */
export const ggufTypes = {
  F32: { id: 0, blockValues: 1, blockBytes: 4 },
  F16: { id: 1, blockValues: 1, blockBytes: 2 },
  Q8_0: { id: 8, blockValues: 32, blockBytes: 34 },
  BF16: { id: 30, blockValues: 1, blockBytes: 2 },
} as const;
export type GgufTensorType = keyof typeof ggufTypes;

/** A metadata value with its GGUF type. */
export type GgufValue =
  | { type: 'uint32' | 'float32'; value: number }
  | { type: 'bool'; value: boolean }
  | { type: 'string'; value: string }
  | { type: 'int32s'; value: readonly number[] }
  | { type: 'strings'; value: readonly string[] };

/** A tensor to write; its bytes are requested when its turn comes. */
export interface GgufTensor {
  name: string;
  /** Rows first, as everywhere here; GGUF uses the reverse order. */
  shape: readonly number[];
  type: GgufTensorType;
  read(): Promise<Uint8Array>;
}

/** Type numbers of metadata values in GGUF. */
const valueTypes = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;

/** Alignment of tensors: the default of `general.alignment`. */
const alignment = 32;

/**
 * Writes a new GGUF file of version 3, one tensor at a time, hashed while writing, and synced. Throws EEXIST rather than overwrite. Format:
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
export async function writeGgufFile(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): Promise<{ sizeBytes: number; sha256: string }> {
  const header = headerOf(metadata, tensors);
  const hash = createHash('sha256');
  const handle = await open(path, 'wx');
  let sizeBytes = 0;
  const write = async (bytes: Uint8Array): Promise<void> => {
    hash.update(bytes);
    sizeBytes += bytes.byteLength;
    await handle.writeFile(bytes); // at the current position
  };
  const align = async (): Promise<void> => await write(new Uint8Array(aligned(sizeBytes) - sizeBytes));
  try {
    await write(header);
    await align();
    for (const tensor of tensors) {
      const bytes = await tensor.read();
      const expected = bytesOf(tensor);
      if (bytes.byteLength !== expected)
        throw new RangeError(`${tensor.name} should have ${expected} bytes, it has ${bytes.byteLength}`);
      await write(bytes);
      await align();
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  return { sizeBytes, sha256: hash.digest('hex') };
}

function headerOf(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly GgufTensor[]): Buffer {
  const parts = [Buffer.from('GGUF'), uint32(3), uint64(tensors.length), uint64(metadata.size)];
  for (const [key, value] of metadata) parts.push(string(key), valueBytes(value));
  let offset = 0;
  for (const tensor of tensors) {
    const { name, shape, type } = tensor;
    const sizes = Buffer.concat([...shape].reverse().map(uint64));
    parts.push(string(name), uint32(shape.length), sizes, uint32(ggufTypes[type].id), uint64(offset));
    offset = aligned(offset + bytesOf(tensor));
  }
  return Buffer.concat(parts);
}

function valueBytes(entry: GgufValue): Buffer {
  switch (entry.type) {
    case 'uint32':
      return Buffer.concat([uint32(valueTypes.uint32), uint32(entry.value)]);
    case 'float32':
      return Buffer.concat([uint32(valueTypes.float32), float32(entry.value)]);
    case 'bool':
      return Buffer.concat([uint32(valueTypes.bool), Buffer.of(entry.value ? 1 : 0)]);
    case 'string':
      return Buffer.concat([uint32(valueTypes.string), string(entry.value)]);
    case 'int32s':
      return arrayOf(valueTypes.int32, entry.value.map(int32));
    case 'strings':
      return arrayOf(valueTypes.string, entry.value.map(string));
  }
}

function arrayOf(type: number, elements: readonly Buffer[]): Buffer {
  return Buffer.concat([uint32(valueTypes.array), uint32(type), uint64(elements.length), ...elements]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}

function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function float32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}

function string(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8');
  return Buffer.concat([uint64(bytes.length), bytes]);
}

function bytesOf({ shape, type }: GgufTensor): number {
  const { blockValues, blockBytes } = ggufTypes[type];
  return (shape.reduce((product, size) => product * size, 1) / blockValues) * blockBytes;
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / alignment) * alignment;
}
