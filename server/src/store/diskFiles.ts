import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';

/** The file, or all files below the folder; what is removed meanwhile is left out. */
export async function* filesOf(
  path: string,
): AsyncGenerator<{ path: string; key: string; linkCount: number; bytes: number; sizeBytes: number }> {
  const stats = await lstat(path).catch(() => undefined);
  if (stats === undefined) return;
  if (stats.isDirectory()) {
    for (const name of await namesIn(path)) yield* filesOf(join(path, name));
    return;
  }
  // Blocks have 512 bytes, whatever the file system's are.
  const { dev, ino, nlink, blocks, size } = stats;
  yield { path, key: `${dev} ${ino}`, linkCount: nlink, bytes: blocks * 512, sizeBytes: size };
}

/** What a file, or all below a folder, takes; what several names share counts once, also with those counted before. */
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

/** Entries of a folder; none where there is no folder. */
export async function namesIn(folder: string): Promise<string[]> {
  return await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return [];
    throw error;
  });
}
