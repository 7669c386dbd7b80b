import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import type { AllowedFolders } from '../datasets/allowedFolders.js';

/** The text of a file that a client named; `problem` says why it cannot be had. */
export async function readServerFile(
  allowed: AllowedFolders,
  path: string,
  bytesMax: number,
): Promise<{ text: string } | { problem: string }> {
  const found = await allowed.file(path);
  if ('problem' in found) return found;
  return await readTextFile(found.path, bytesMax);
}

/** The text of a regular file, links not followed; `problem` says why it cannot be had. */
export async function readTextFile(
  path: string,
  bytesMax: number,
): Promise<{ text: string } | { problem: string }> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
    () => undefined,
  );
  if (file === undefined) return { problem: 'it cannot be read' };
  try {
    const stats = await file.stat();
    if (!stats.isFile()) return { problem: 'it is not a regular file' };
    if (stats.size > bytesMax) return { problem: `it has ${stats.size} bytes; at most ${bytesMax} are read` };
    return { text: await file.readFile('utf8') };
  } finally {
    await file.close();
  }
}
