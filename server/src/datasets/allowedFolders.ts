import { constants } from 'node:fs';
import { open, realpath, stat } from 'node:fs/promises';
import { isAbsolute, sep } from 'node:path';

/** A path that was refused, with the reason for the client. */
export interface PathRefused {
  problem: string;
}

/** Files and folders on the server that clients may name: only what lies, links resolved, inside a folder of RELORA_ALLOWED_FOLDERS. */
export class AllowedFolders {
  constructor(private readonly folders: readonly string[]) {}

  /** A regular file, links resolved, that can be read. */
  async file(path: string): Promise<{ path: string; sizeBytes: number } | PathRefused> {
    const resolved = await this.resolve(path);
    if (typeof resolved !== 'string') return resolved;
    // Not blocking: the open of a named pipe would wait for its writer.
    const handle = await open(
      resolved,
      constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
    ).catch(() => undefined);
    if (handle === undefined) return { problem: `${path} cannot be read` };
    try {
      const stats = await handle.stat();
      if (!stats.isFile()) return { problem: `${path} is not a regular file` };
      return { path: resolved, sizeBytes: stats.size };
    } finally {
      await handle.close();
    }
  }

  /** A folder, links resolved. */
  async folder(path: string): Promise<{ path: string } | PathRefused> {
    const resolved = await this.resolve(path);
    if (typeof resolved !== 'string') return resolved;
    const stats = await stat(resolved).catch(() => undefined);
    return stats?.isDirectory() ? { path: resolved } : { problem: `${path} is not a folder` };
  }

  /** One answer for what is missing and for what is not allowed, so that nobody learns which files there are. */
  private async resolve(path: string): Promise<string | PathRefused> {
    const refused = { problem: `${path} is not there, or not inside a folder of RELORA_ALLOWED_FOLDERS` };
    if (!isAbsolute(path) || path.includes('\0')) return { problem: 'must be an absolute path' };
    const real = await realpath(path).catch(() => undefined);
    if (real === undefined) return refused;
    for (const folder of this.folders) {
      const allowed = await realpath(folder).catch(() => undefined);
      if (allowed === undefined) continue;
      if (real === allowed || real.startsWith(allowed.endsWith(sep) ? allowed : allowed + sep)) return real;
    }
    return refused;
  }
}
