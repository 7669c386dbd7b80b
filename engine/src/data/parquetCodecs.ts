import { brotliDecompressSync, gunzipSync } from 'node:zlib';
import type { Compressors } from 'hyparquet';
import { compressors, decompressZstd } from 'hyparquet-compressors';

/**
 * Unpacks a page into no more bytes than its header says. By default Zstandard and Brotli allocate memory by what the packed data claims,
 * and gzip keeps unpacking beyond the available space: a page of a megabyte can contain many gigabytes.
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
