import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';

/** What the kernel takes in an address of a socket, with room to spare. */
const pathBytesMax = 100;

/**
 * Calls with a path of the socket by which commands on the same machine speak to the server of a data folder. Only the user of the
 * server may connect. A long path is reached by a descriptor of its folder, where the system has such paths.
 */
export async function withAdminSocket<Result>(
  dataFolder: string,
  use: (path: string) => Promise<Result>,
): Promise<Result> {
  const path = join(dataFolder, 'admin.sock');
  if (Buffer.byteLength(path) <= pathBytesMax) return await use(path);
  const folder = openSync(dataFolder, 'r');
  try {
    return await use(`/proc/self/fd/${folder}/admin.sock`);
  } finally {
    closeSync(folder);
  }
}
