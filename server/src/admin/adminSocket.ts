import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';

/** The kernel's limit for a socket address, with room to spare. */
const pathBytesMax = 100;

/**
 * Calls `use` with a path of the socket through which commands on the same machine reach the server of a data folder. Only the user of the
 * server may connect. A path that is too long is replaced by one through a descriptor of its folder, if the system has such paths.
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
