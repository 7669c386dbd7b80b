import { constants } from 'node:fs';
import { open } from 'node:fs/promises';

/** The text of a regular file of our own, links not followed; `problem` says why it cannot be had. */
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
