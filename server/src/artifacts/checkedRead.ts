import { crc32c } from '@node-rs/crc32';
import { chunkBytes, Digester, type OpenBlob } from '../store/blobStore.js';

/** The bytes on the disk are not those that were sealed. */
export class ArtifactDamaged extends Error {
  override name = 'ArtifactDamaged';
}

/**
 * Bytes of a blob from an offset. Each chunk is compared with its CRC32C before its last piece is returned, so nobody gets a complete file
 * with a changed bit. Throws ArtifactDamaged.
 */
export async function* readChecked(
  blob: OpenBlob,
  offset: number,
  pieceBytes: number,
  crcs: readonly number[],
): AsyncGenerator<Uint8Array> {
  for (let index = Math.floor(offset / chunkBytes); index < crcs.length; index++) {
    const start = index * chunkBytes;
    const end = Math.min(start + chunkBytes, blob.sizeBytes);
    let position = start;
    let crc = 0;
    for await (const piece of blob.read(start, end, pieceBytes)) {
      crc = crc32c(piece as Buffer, crc);
      position += piece.length;
      if (position === end && crc !== crcs[index]) throw damaged(blob, start, end);
      // Bytes before the offset are read only for the checksum.
      const wanted = Math.max(0, offset - (position - piece.length));
      if (wanted < piece.length) yield piece.subarray(wanted);
    }
    if (position !== end) throw damaged(blob, position, end);
  }
}

/**
 * All bytes of a blob whose chunks have no checksums yet. They are compared with its SHA-256 before the last piece is returned; then the
 * checksums are passed on. Throws ArtifactDamaged.
 */
export async function* readFirst(
  blob: OpenBlob,
  pieceBytes: number,
  sha256: string,
  keep: (crcs: number[]) => Promise<void>,
): AsyncGenerator<Uint8Array> {
  const digester = new Digester();
  let position = 0;
  let last: Uint8Array | undefined;
  for await (const piece of blob.read(0, blob.sizeBytes, pieceBytes)) {
    if (last !== undefined) yield last;
    digester.add(piece);
    position += piece.length;
    last = piece;
  }
  if (position !== blob.sizeBytes) throw damaged(blob, position, blob.sizeBytes);
  const found = digester.finish();
  if (found.sha256 !== sha256) throw damaged(blob, 0, blob.sizeBytes);
  await keep(found.crcs);
  if (last !== undefined) yield last;
}

function damaged({ name, sizeBytes }: OpenBlob, start: number, end: number): ArtifactDamaged {
  return new ArtifactDamaged(
    `Bytes ${start} to ${end} of ${sizeBytes} of ${name} are not those that were sealed`,
  );
}
