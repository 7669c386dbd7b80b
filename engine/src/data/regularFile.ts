import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { isDiskFault } from '../io/diskFault.js';
import { DataError } from './dataErrors.js';
import { openBeneath } from '../io/openBeneath.js';
import type { SourceFormat } from './sourceFormat.js';

/** A source file of a data set. */
export interface SourceFile {
  path: string;
  /** Folders that its path must not lead out of, for a path from a client; absent for our own. */
  beneath?: readonly string[];
  /** Its name in messages. */
  name: string;
  /** `auto`: detected by content and name. */
  format: SourceFormat | 'auto';
  /** `auto`: divided by the held-out fraction. */
  split: 'auto' | 'train' | 'heldOut';
}

/** A source file, open for reading by position. */
export class RegularFile {
  private constructor(
    readonly name: string,
    readonly sizeBytes: number,
    private readonly handle: FileHandle,
    private readonly changedMs: number,
  ) {}

  /** Refuses links, pipes and devices. Throws FILE_UNREADABLE or FILE_NOT_REGULAR; messages use the name. */
  static async open({
    path,
    name,
    beneath,
  }: Pick<SourceFile, 'path' | 'name' | 'beneath'>): Promise<RegularFile> {
    let handle: FileHandle;
    try {
      // Non-blocking: opening a pipe would otherwise wait for its writer.
      const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
      handle = beneath === undefined ? await open(path, flags) : (await openBeneath(beneath, path)).handle;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code === 'ELOOP') throw new DataError('FILE_NOT_REGULAR', { file: name, got: 'a symbolic link' });
      if (code === 'ENXIO' || code === 'EOPNOTSUPP')
        // a socket, on Linux and on macOS
        throw new DataError('FILE_NOT_REGULAR', { file: name, got: 'a socket or device' });
      if (isDiskFault(error)) throw error;
      throw new DataError('FILE_UNREADABLE', { file: name, problem: code ?? message });
    }
    try {
      const stats = await handle.stat();
      if (!stats.isFile()) {
        const got = stats.isDirectory() ? 'a folder' : stats.isFIFO() ? 'a pipe' : 'a device';
        throw new DataError('FILE_NOT_REGULAR', { file: name, got });
      }
      return new RegularFile(name, stats.size, handle, stats.mtimeMs);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** Exactly `length` bytes from `position`. Throws FILE_CHANGED if they no longer exist. */
  async read(position: number, length: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(length);
    for (let done = 0; done < length;) {
      const { bytesRead } = await this.handle.read(bytes, done, length - done, position + done);
      if (bytesRead === 0) throw new DataError('FILE_CHANGED', { file: this.name });
      done += bytesRead;
    }
    return bytes;
  }

  /** Hexadecimal SHA-256 of the whole file. */
  async sha256(signal?: AbortSignal): Promise<string> {
    const hash = createHash('sha256');
    const blockBytes = 1 << 20;
    for (let position = 0; position < this.sizeBytes; position += blockBytes) {
      signal?.throwIfAborted();
      hash.update(await this.read(position, Math.min(blockBytes, this.sizeBytes - position)));
    }
    return hash.digest('hex');
  }

  /** Equal if the file was opened again and has not changed. */
  get stamp(): string {
    return `${this.sizeBytes} ${this.changedMs}`;
  }

  /** Throws FILE_CHANGED if size or modification time differ from those at opening. */
  async assertUnchanged(): Promise<void> {
    const { size, mtimeMs } = await this.handle.stat();
    if (size !== this.sizeBytes || mtimeMs !== this.changedMs)
      throw new DataError('FILE_CHANGED', { file: this.name });
  }

  async close(): Promise<void> {
    await this.handle.close();
  }
}
