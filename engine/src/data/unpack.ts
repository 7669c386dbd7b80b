import { pipeline, Readable } from 'node:stream';
import * as zlib from 'node:zlib';
import { DataError } from './dataErrors.js';
import type { RegularFile } from './regularFile.js';

export type Compression = 'none' | 'gzip' | 'zstd';

const blockBytes = 1 << 20;

/** By the first bytes of the file, which are more reliable than its name. */
export async function compressionOf(file: RegularFile): Promise<Compression> {
  const start = await file.read(0, Math.min(4, file.sizeBytes));
  if (start.length >= 3 && start.readUIntBE(0, 3) === 0x1f8b08) return 'gzip';
  return start.length === 4 && start.readUInt32BE(0) === 0x28b52ffd ? 'zstd' : 'none';
}

/**
 * The bytes of a file from its beginning, unpacked, one block at a time. Throws COMPRESSION_INVALID if they cannot be unpacked, or exceed
 * `bytesMax`.
 */
export async function* unpackedBlocks(
  file: RegularFile,
  compression: Compression,
  bytesMax: number,
): AsyncGenerator<Buffer> {
  if (compression === 'none') return yield* blocksOf(file, 0);
  const unpack = compression === 'gzip' ? zlib.createGunzip() : zstd(file.name);
  const packed = Readable.from(blocksOf(file, 0), { objectMode: false });
  pipeline(packed, unpack, () => {}); // errors surface in the loop below
  let total = 0;
  try {
    for await (const block of unpack as AsyncIterable<Buffer>) {
      total += block.length;
      if (total > bytesMax) throw invalid(file.name, `it unpacks to more than ${bytesMax} bytes`);
      yield block;
    }
  } catch (error) {
    if (error instanceof DataError || !isFault(error)) throw error;
    throw invalid(file.name, `not sound as ${compression}: ${error.message}`);
  } finally {
    packed.destroy();
    unpack.destroy();
  }
}

/** The raw bytes of a file between two positions. */
export async function* blocksOf(file: RegularFile, from: number, to = Infinity): AsyncGenerator<Buffer> {
  const end = Math.min(to, file.sizeBytes);
  for (let position = from; position < end; position += blockBytes)
    yield await file.read(position, Math.min(blockBytes, end - position));
}

/** Available in Node from 22.15 on. */
function zstd(name: string): NodeJS.ReadWriteStream & { destroy(): void } {
  const { createZstdDecompress } = zlib as { createZstdDecompress?: () => zlib.Gunzip };
  if (createZstdDecompress === undefined)
    throw invalid(
      name,
      `Node ${process.versions.node} of the server does not unpack zstd: send it as gzip or unpacked`,
    );
  return createZstdDecompress();
}

function isFault(error: unknown): error is Error {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).code === 'string';
}

function invalid(file: string, problem: string): DataError {
  return new DataError('COMPRESSION_INVALID', { file, problem });
}
