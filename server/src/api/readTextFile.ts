import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename } from 'node:path';

/** The text of a regular file of our own, without following links; `problem` says what is there instead. */
export async function readTextFile(
  path: string,
  bytesMax: number,
): Promise<{ text: string } | { problem: string }> {
  const name = basename(path); // the folder is not shown to clients
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
    () => undefined,
  );
  if (file === undefined) return { problem: `${name}, which cannot be read` };
  try {
    const stats = await file.stat();
    if (!stats.isFile()) return { problem: `${name}, which is not a regular file` };
    if (stats.size > bytesMax)
      return { problem: `${name}, which has ${stats.size} bytes; at most ${bytesMax} are read` };
    return { text: await file.readFile('utf8') };
  } finally {
    await file.close();
  }
}
