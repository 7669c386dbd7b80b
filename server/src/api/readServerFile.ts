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
  if (found.sizeBytes > bytesMax)
    return { problem: `it has ${found.sizeBytes} bytes; at most ${bytesMax} are read` };
  const file = await open(found.path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
    () => undefined,
  );
  if (file === undefined) return { problem: 'it cannot be read' };
  try {
    // Looked at again: between the check and the opening another file may have taken its place.
    const stats = await file.stat();
    if (!stats.isFile() || stats.size > bytesMax) return { problem: 'it changed while it was read' };
    return { text: await file.readFile('utf8') };
  } finally {
    await file.close();
  }
}
