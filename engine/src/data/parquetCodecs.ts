import { brotliDecompressSync, gunzipSync } from 'node:zlib';
import type { Compressors } from 'hyparquet';
import { compressors, decompressZstd } from 'hyparquet-compressors';

/**
 * What unpacks a page into no more bytes than its header says. Left to themselves Zstandard and Brotli take memory by what is
 * packed, and gzip unpacks to the end what it has no room for: a page of a megabyte can hold many gigabytes.
 */
export const parquetCodecs: Compressors = {
  ...compressors,
  GZIP: (packed, length) => gunzipSync(packed, { maxOutputLength: atLeastOne(length) }),
  BROTLI: (packed, length) => brotliDecompressSync(packed, { maxOutputLength: atLeastOne(length) }),
  ZSTD: (packed, length) =>
    length === 0 ? new Uint8Array() : decompressZstd(packed, new Uint8Array(length)),
};

/** Zero is refused as a limit. */
function atLeastOne(length: number): number {
  return Math.max(1, length);
}
