import type { FileHandle } from 'node:fs/promises';
import { isAbsolute } from 'node:path';
import { NotBeneath, openBeneath } from '@relora/engine/files';
import { quote } from '../errors.js';

const pieceBytes = 1 << 20;

/** A refused path, with the reason for the client. */
export interface PathRefused {
  problem: string;
}

/**
 * Files and folders on the server that clients may name: only those that are, after resolving links, inside a folder of
 * RELORA_ALLOWED_FOLDERS. They are opened in such a way that a concurrent change cannot lead out of it.
 */
export class AllowedFolders {
  constructor(private readonly folders: readonly string[]) {}

  /** A readable regular file, with links resolved. */
  async file(path: string): Promise<{ path: string; sizeBytes: number } | PathRefused> {
    return await this.opened(path, async (handle, real) => {
      const stats = await handle.stat();
      if (!stats.isFile()) return { problem: `${path}, which is not a regular file` };
      return { path: real, sizeBytes: stats.size };
    });
  }

  /** A folder, with links resolved. */
  async folder(path: string): Promise<{ path: string } | PathRefused> {
    return await this.opened(path, async (handle, real) =>
      (await handle.stat()).isDirectory() ? { path: real } : { problem: `${path}, which is not a folder` },
    );
  }

  /** The text of a file of at most `bytesMax` bytes. */
  async text(path: string, bytesMax: number): Promise<{ text: string } | PathRefused> {
    return await this.opened(path, async (handle) => {
      const stats = await handle.stat();
      if (!stats.isFile()) return { problem: `${path}, which is not a regular file` };
      if (stats.size > bytesMax)
        return { problem: `${path}, which has ${stats.size} bytes; at most ${bytesMax} are read` };
      return { text: await handle.readFile('utf8') };
    });
  }

  /** Reads a regular file from an offset. If the file is changed meanwhile, earlier pieces may have been passed on already. */
  async pieces(
    path: string,
    start: number,
    take: (data: Buffer, offset: number) => Promise<void>,
  ): Promise<PathRefused | undefined> {
    let failure: unknown;
    const refused = await this.opened(path, async (handle) => {
      if (!(await handle.stat()).isFile()) return { problem: `${path}, which is not a regular file` };
      for (let offset = start; ;) {
        const piece = Buffer.allocUnsafe(pieceBytes);
        const { bytesRead } = await handle.read(piece, 0, pieceBytes, offset);
        if (bytesRead === 0) return undefined;
        try {
          await take(piece.subarray(0, bytesRead), offset);
        } catch (error) {
          failure = error; // says nothing about the path
          return undefined;
        }
        offset += bytesRead;
      }
    });
    if (failure !== undefined) throw failure as Error;
    return refused;
  }

  /** The same answer for a missing path and one that is not allowed, so that nobody learns which files exist. */
  private async opened<T>(
    path: string,
    use: (handle: FileHandle, real: string) => Promise<T>,
  ): Promise<T | PathRefused> {
    if (!isAbsolute(path) || path.includes('\0'))
      return { problem: `${quote(path)}, which is not an absolute path` };
    try {
      const { handle, path: real } = await openBeneath(this.folders, path);
      try {
        return await use(handle, real);
      } finally {
        await handle.close();
      }
    } catch (error) {
      if (error instanceof NotBeneath)
        return { problem: `${path}, which is not there, or not inside a folder of RELORA_ALLOWED_FOLDERS` };
      return {
        problem: `${path}, which cannot be read (${(error as NodeJS.ErrnoException).code ?? 'an error'})`,
      };
    }
  }
}
