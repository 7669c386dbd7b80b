import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';

/** The file, or all files below the folder, without those that are removed meanwhile. */
export async function* filesOf(
  path: string,
): AsyncGenerator<{ path: string; key: string; linkCount: number; bytes: number; sizeBytes: number }> {
  const stats = await lstat(path).catch(() => undefined);
  if (stats === undefined) return;
  if (stats.isDirectory()) {
    for (const name of await namesIn(path)) yield* filesOf(join(path, name));
    return;
  }
  // `blocks` counts units of 512 bytes, whatever the block size of the file system.
  const { dev, ino, nlink, blocks, size } = stats;
  yield { path, key: `${dev} ${ino}`, linkCount: nlink, bytes: blocks * 512, sizeBytes: size };
}

/**
 * Bytes that a file, or everything below a folder, takes on the disk; a file with several names counts once, including names in `counted`.
 */
export async function bytesOf(path: string, counted = new Set<string>()): Promise<number> {
  let bytes = 0;
  for await (const file of filesOf(path)) {
    if (file.linkCount > 1) {
      if (counted.has(file.key)) continue;
      counted.add(file.key);
    }
    bytes += file.bytes;
  }
  return bytes;
}

/** Entries of a folder; empty if it does not exist. */
export async function namesIn(folder: string): Promise<string[]> {
  return await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return [];
    throw error;
  });
}
