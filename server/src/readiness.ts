import { statfs } from 'node:fs/promises';
import type { Config } from './config.js';
import type { Database } from './store/database.js';
import type { Readiness } from './web/httpServer.js';

/** Whether jobs can be accepted: the store can be written, the disk has room, and the server is not about to stop. */
export async function readReadiness(
  db: Database,
  config: Pick<Config, 'dataFolder' | 'freeDiskBytesMin'>,
  stopping: AbortSignal,
): Promise<Readiness> {
  if (stopping.aborted) return { ready: false, problem: 'The server is stopping' };
  const { bavail, bsize } = await statfs(config.dataFolder);
  const freeBytes = bavail * bsize;
  if (freeBytes < config.freeDiskBytesMin) {
    const problem = `The disk is almost full: ${freeBytes} bytes are free, ${config.freeDiskBytesMin} are needed`;
    return { ready: false, problem };
  }
  try {
    // Takes the write lock and changes nothing: a store on a file system that became read-only refuses this.
    await db.deleteFrom('requests').where('request_id', '=', '').execute();
  } catch (error) {
    return { ready: false, problem: `The store cannot be written: ${(error as Error).message}` };
  }
  return { ready: true };
}
