import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, rename } from 'node:fs/promises';
import { basename, dirname } from 'node:path';

/** A file as described in a manifest. */
export interface FileDigest {
  fileName: string;
  sizeBytes: number;
  sha256: string;
}

/** Writes a new file and syncs it. Throws EEXIST rather than overwrite. */
export async function writeNewFile(path: string, content: string | Uint8Array): Promise<FileDigest> {
  const bytes = typeof content === 'string' ? Buffer.from(content) : content;
  const file = await open(path, 'wx');
  try {
    await file.writeFile(bytes);
    await file.sync();
  } finally {
    await file.close();
  }
  return {
    fileName: basename(path),
    sizeBytes: bytes.byteLength,
    sha256: createHash('sha256').update(bytes).digest('hex'),
  };
}

/** Makes the names in a folder durable: otherwise a crash can lose a file whose content was synced. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Durably renames a complete and synced file or folder to its final name. */
export async function publish(temporaryPath: string, path: string): Promise<void> {
  await rename(temporaryPath, path);
  await syncFolder(dirname(path));
}

/** Size and SHA-256 of a file on disk. */
export async function digestFile(path: string): Promise<FileDigest> {
  const hash = createHash('sha256');
  let sizeBytes = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
    hash.update(chunk as Buffer);
    sizeBytes += (chunk as Buffer).length;
  }
  return { fileName: basename(path), sizeBytes, sha256: hash.digest('hex') };
}
