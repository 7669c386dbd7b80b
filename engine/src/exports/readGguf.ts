import { open, type FileHandle } from 'node:fs/promises';
import { fromBfloat16, fromFloat16 } from '../io/halfFloats.js';
import { ggufTypes, type GgufTensorType } from './ggufFile.js';
import { q8BlockValues } from './quantizeQ8.js';

/** A metadata value in JavaScript's types. */
export type GgufMetadata = number | bigint | boolean | string | GgufMetadata[];

/** A GGUF file, open for reading one tensor at a time. */
export interface OpenGguf {
  metadata: ReadonlyMap<string, GgufMetadata>;
  /** Shapes with rows first, as everywhere here. */
  tensors: ReadonlyMap<string, { shape: readonly number[]; type: GgufTensorType }>;
  /** A tensor's values as users of the file compute with them. */
  readFloat32(name: string): Promise<Float32Array>;
  close(): Promise<void>;
}

/** The file is not a GGUF file of the kind that we write. */
export class GgufInvalid extends Error {
  override name = 'GgufInvalid';
}

const alignment = 32;
/** Larger than any header that we write, with a vocabulary and its merges. */
const headerBytesMax = 512 * 2 ** 20;

/** Opens a GGUF file of version 3 with tensors of the types that we write; throws GgufInvalid. */
export async function openGguf(path: string): Promise<OpenGguf> {
  const handle = await open(path, 'r');
  try {
    const { size } = await handle.stat();
    const reader = new HeaderReader(handle, Math.min(size, headerBytesMax));
    if ((await reader.bytes(4)).toString('latin1') !== 'GGUF')
      throw new GgufInvalid('It does not begin with GGUF');
    const version = await reader.uint32();
    if (version !== 3) throw new GgufInvalid(`It is of version ${version}, 3 was expected`);
    const tensorCount = await reader.uint64();
    const metadataCount = await reader.uint64();
    const metadata = new Map<string, GgufMetadata>();
    for (let i = 0; i < metadataCount; i++) metadata.set(await reader.text(), await reader.value());
    const tensors = new Map<string, { shape: number[]; type: GgufTensorType; offset: number }>();
    for (let i = 0; i < tensorCount; i++) {
      const name = await reader.text();
      const dimensions = await reader.uint32();
      if (dimensions > 4) throw new GgufInvalid(`${name} has ${dimensions} dimensions`);
      const shape: number[] = [];
      for (let at = 0; at < dimensions; at++) shape.unshift(await reader.uint64());
      const id = await reader.uint32();
      const type = typeNames.find((word) => ggufTypes[word].id === id);
      if (type === undefined) throw new GgufInvalid(`${name} is of type ${id}`);
      tensors.set(name, { shape, type, offset: await reader.uint64() });
    }
    const dataStart = Math.ceil(reader.position / alignment) * alignment;
    const readFloat32 = async (name: string): Promise<Float32Array> => {
      const found = tensors.get(name);
      if (found === undefined) throw new GgufInvalid(`It has no tensor ${name}`);
      const { shape, type, offset } = found;
      const { blockValues, blockBytes } = ggufTypes[type];
      const length = (shape.reduce((product, count) => product * count, 1) / blockValues) * blockBytes;
      if (!Number.isSafeInteger(length) || dataStart + offset + length > size)
        throw new GgufInvalid(`It ends before ${name} does`);
      return widen(await readExactly(handle, dataStart + offset, length), type);
    };
    return { metadata, tensors, readFloat32, close: async () => await handle.close() };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

const typeNames = Object.keys(ggufTypes) as GgufTensorType[];

/** Reads values sequentially, loading the file in pieces. */
class HeaderReader {
  position = 0;
  private piece: Buffer = Buffer.alloc(0);
  private pieceStart = 0;

  constructor(
    private readonly handle: FileHandle,
    private readonly end: number,
  ) {}

  async bytes(length: number): Promise<Buffer> {
    if (this.position + length > this.end) throw new GgufInvalid('It ends within its header');
    const from = this.position - this.pieceStart;
    this.position += length;
    if (from + length <= this.piece.length) return this.piece.subarray(from, from + length);
    this.pieceStart = this.position - length;
    const wanted = Math.min(this.end - this.pieceStart, Math.max(length, 1 << 20));
    this.piece = await readExactly(this.handle, this.pieceStart, wanted);
    return this.piece.subarray(0, length);
  }

  async uint32(): Promise<number> {
    return (await this.bytes(4)).readUInt32LE();
  }

  async uint64(): Promise<number> {
    const value = (await this.bytes(8)).readBigUInt64LE();
    if (value > Number.MAX_SAFE_INTEGER) throw new GgufInvalid(`It counts ${value} of something`);
    return Number(value);
  }

  async text(): Promise<string> {
    return (await this.bytes(await this.uint64())).toString('utf8');
  }

  async value(): Promise<GgufMetadata> {
    return await this.valueOf(await this.uint32());
  }

  private async valueOf(type: number): Promise<GgufMetadata> {
    switch (type) {
      case 4:
        return await this.uint32();
      case 5:
        return (await this.bytes(4)).readInt32LE();
      case 6:
        return (await this.bytes(4)).readFloatLE();
      case 7:
        return (await this.bytes(1))[0] === 1;
      case 8:
        return await this.text();
      case 9: {
        const inner = await this.uint32();
        const count = await this.uint64();
        const list: GgufMetadata[] = [];
        for (let i = 0; i < count; i++) list.push(await this.valueOf(inner));
        return list;
      }
      default:
        throw new GgufInvalid(`It has a value of type ${type}`);
    }
  }
}

function widen(bytes: Buffer, type: GgufTensorType): Float32Array {
  if (type === 'F32') return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  if (type === 'Q8_0') return dequantizeQ8(bytes);
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  const from = type === 'BF16' ? fromBfloat16 : fromFloat16;
  const values = new Float32Array(halves.length);
  for (let i = 0; i < values.length; i++) values[i] = from(halves[i]!);
  return values;
}

/** Blocks of a float16 scale and int8 codes, as in ggml: each value is scale times code. */
function dequantizeQ8(bytes: Buffer): Float32Array {
  const blockBytes = 2 + q8BlockValues;
  const values = new Float32Array((bytes.length / blockBytes) * q8BlockValues);
  for (let block = 0; block * blockBytes < bytes.length; block++) {
    const start = block * blockBytes;
    const scale = fromFloat16(bytes.readUInt16LE(start));
    for (let i = 0; i < q8BlockValues; i++)
      values[block * q8BlockValues + i] = scale * bytes.readInt8(start + 2 + i);
  }
  return values;
}

async function readExactly(handle: FileHandle, position: number, length: number): Promise<Buffer> {
  // Not from the shared pool: tensors are viewed as float32, which must begin at a multiple of 4.
  const bytes = Buffer.allocUnsafeSlow(length);
  for (let done = 0; done < length;) {
    const { bytesRead } = await handle.read(bytes, done, Math.min(length - done, 1 << 30), position + done);
    if (bytesRead === 0) throw new GgufInvalid(`It ends at byte ${position + done}`);
    done += bytesRead;
  }
  return bytes;
}
