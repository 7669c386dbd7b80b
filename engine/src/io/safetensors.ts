import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { isUtf8 } from 'node:buffer';
import { basename } from 'node:path';
import { fromBfloat16, fromFloat16, storedTypes, type StoredType } from './halfFloats.js';
import { narrow } from './narrow.js';
import { headerBytesMax, parseHeader, SafetensorsInvalid, type StoredTensor } from './safetensorsHeader.js';

export type StoredValues = Float32Array | Int8Array | Uint8Array;

/** A safetensors file, open for reading one tensor at a time. */
export interface SafetensorsFile {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** Values of a tensor, widened to float32. Tensors of codes are refused. */
  readFloat32(name: string): Promise<Float32Array>;
  /** The same, but codes are returned unchanged. */
  read(name: string): Promise<StoredValues>;
  close(): Promise<void>;
}

/** Opens and checks a safetensors file; throws SafetensorsInvalid, or the system's error if it cannot be opened. */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  // Non-blocking: opening a pipe would otherwise wait for its writer.
  const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  return await readSafetensors(handle, basename(path));
}

/** The same for an open file. Takes ownership of the handle, and closes it at once if it throws. */
export async function readSafetensors(handle: FileHandle, file: string): Promise<SafetensorsFile> {
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw new SafetensorsInvalid(file, 'is not a regular file');
    const { size } = stats;
    if (size < 8)
      throw new SafetensorsInvalid(file, `has ${size} bytes, but the length of the header takes 8`);
    const claimed = (await readExactly(handle, 0, 8, file)).readBigUInt64LE();
    if (claimed > headerBytesMax || claimed > size - 8) {
      throw new SafetensorsInvalid(
        file,
        `claims a header of ${claimed} bytes in a file of ${size}, the limit is ${headerBytesMax}`,
      );
    }
    const headerBytes = Number(claimed);
    const header = await readExactly(handle, 8, headerBytes, file);
    if (!isUtf8(header)) throw new SafetensorsInvalid(file, 'has a header that is not UTF-8');
    const dataStart = 8 + headerBytes;
    const tensors = parseHeader(header.toString('utf8'), size - dataStart, file);
    const read = async (name: string): Promise<StoredValues> => {
      const tensor = tensors.get(name);
      if (tensor === undefined) throw new SafetensorsInvalid(file, `has no tensor ${name}`);
      return valuesOf(
        await readExactly(handle, dataStart + tensor.begin, tensor.end - tensor.begin, file),
        tensor.dtype,
      );
    };
    return {
      tensors,
      read,
      async readFloat32(name) {
        const values = await read(name);
        if (values instanceof Float32Array) return values;
        const dtype = tensors.get(name)!.dtype;
        throw new SafetensorsInvalid(file, `has ${name} in ${dtype}, floating point numbers were expected`);
      },
      close: async () => await handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** A tensor to write; its values are requested when its turn comes. */
export interface TensorSource {
  name: string;
  shape: readonly number[];
  dtype: StoredType;
  read(): Promise<StoredValues> | StoredValues;
}

export interface WrittenSafetensors {
  sizeBytes: number;
  sha256: string;
  /** Largest absolute difference from rounding to the stored type. */
  castErrorMax: number;
}

/**
 * Writes a new safetensors file, one tensor at a time, hashed while writing, and synced. A finite value that the stored type cannot
 * represent is refused, so a narrowing cast never produces an infinity. Throws EEXIST rather than overwrite.
 */
export async function writeSafetensors(
  path: string,
  sources: readonly TensorSource[],
): Promise<WrittenSafetensors> {
  const header = headerOf(sources);
  const hash = createHash('sha256');
  const handle = await open(path, 'wx');
  let sizeBytes = 0;
  let castErrorMax = 0;
  const write = async (bytes: Uint8Array) => {
    hash.update(bytes);
    sizeBytes += bytes.byteLength;
    await handle.writeFile(bytes); // at the current position
  };
  try {
    await write(header);
    for (const source of sources) {
      const values = await source.read();
      const expected = elementCount(source.shape);
      if (values.length !== expected)
        throw new RangeError(`${source.name} should have ${expected} values, it has ${values.length}`);
      const narrowed = storedBytes(values, source, basename(path));
      castErrorMax = Math.max(castErrorMax, narrowed.errorMax);
      await write(narrowed.bytes);
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  return { sizeBytes, sha256: hash.digest('hex'), castErrorMax };
}

function headerOf(sources: readonly TensorSource[]): Buffer {
  const entries: [string, unknown][] = [['__metadata__', { format: 'pt' }]];
  let position = 0;
  for (const { name, dtype, shape } of sources) {
    const bytes = elementCount(shape) * storedTypes[dtype];
    entries.push([name, { dtype, shape, data_offsets: [position, position + bytes] }]);
    position += bytes;
  }
  const text = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  // The header is padded with spaces, so that the data begin at a multiple of 8.
  const padded = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8, ' ');
  padded.writeBigUInt64LE(BigInt(padded.length - 8));
  text.copy(padded, 8);
  return padded;
}

function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function valuesOf(bytes: Buffer, dtype: StoredType): StoredValues {
  if (dtype === 'I8') return new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  if (dtype === 'U8') return bytes;
  if (dtype === 'F32') return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  const from = dtype === 'BF16' ? fromBfloat16 : fromFloat16;
  const values = new Float32Array(halves.length);
  // Not Float32Array.from: with an iterator it takes 17 times as long, minutes for billions of weights.
  for (let i = 0; i < values.length; i++) values[i] = from(halves[i]!);
  return values;
}

/** Codes are stored unchanged. */
function storedBytes(
  values: StoredValues,
  { name, dtype }: TensorSource,
  file: string,
): { bytes: Uint8Array; errorMax: number } {
  if (dtype === 'I8' || dtype === 'U8')
    return { bytes: new Uint8Array(values.buffer, values.byteOffset, values.byteLength), errorMax: 0 };
  return narrow(
    values as Float32Array,
    dtype,
    (value) => new SafetensorsInvalid(file, `cannot hold ${value} of ${name} in ${dtype}`),
  );
}

async function readExactly(
  handle: FileHandle,
  position: number,
  length: number,
  file: string,
): Promise<Buffer> {
  // Not from the shared pool: tensors are viewed as float32, which must begin at a multiple of 4.
  const bytes = Buffer.allocUnsafeSlow(length);
  for (let done = 0; done < length;) {
    const { bytesRead } = await handle.read(bytes, done, Math.min(length - done, 1 << 30), position + done);
    if (bytesRead === 0)
      throw new SafetensorsInvalid(file, `ends at byte ${position + done}, before a tensor does`);
    done += bytesRead;
  }
  return bytes;
}
