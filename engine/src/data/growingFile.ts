import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { isDiskFault } from '../io/diskFault.js';
import { DataError } from './dataErrors.js';

/** How far a file was written, and the hash of its content up to there. */
export interface FileMark {
  sizeBytes: number;
  sha256: string;
}

/** A file that is written sequentially and hashed on the way, if necessary by several processes one after another. */
export class GrowingFile {
  private constructor(
    private readonly handle: FileHandle,
    private readonly hash: Hash,
    private written: number,
  ) {}

  /** A new file; throws EEXIST rather than overwrite. */
  static async begin(path: string): Promise<GrowingFile> {
    return new GrowingFile(await open(path, 'wx'), createHash('sha256'), 0);
  }

  /** Continues a file at a mark: anything after it is cut off. Throws DATASET_CORRUPT if the content before the mark has changed. */
  static async continueAt(path: string, file: string, mark: FileMark): Promise<GrowingFile> {
    const handle = await open(path, 'r+').catch((error: unknown) => {
      if (isDiskFault(error)) throw error;
      throw corrupt(file, 'a file that can be written', (error as NodeJS.ErrnoException).code ?? 'an error');
    });
    try {
      const { size } = await handle.stat();
      if (size < mark.sizeBytes) throw corrupt(file, `at least ${mark.sizeBytes} bytes`, `${size}`);
      await handle.truncate(mark.sizeBytes);
      const hash = createHash('sha256');
      for await (const block of createReadStream(path, { highWaterMark: 1 << 20 }))
        hash.update(block as Buffer);
      const got = hash.copy().digest('hex');
      if (got !== mark.sha256) throw corrupt(file, `SHA-256 ${mark.sha256}`, got);
      return new GrowingFile(handle, hash, mark.sizeBytes);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      const { bytesWritten } = await this.handle.write(bytes, done, bytes.length - done, this.written + done);
      done += bytesWritten;
    }
    this.hash.update(bytes);
    this.written += bytes.length;
  }

  get mark(): FileMark {
    return { sizeBytes: this.written, sha256: this.hash.copy().digest('hex') };
  }

  async sync(): Promise<void> {
    await this.handle.sync();
  }

  async close(): Promise<void> {
    await this.handle.close();
  }
}

function corrupt(file: string, expected: string, got: string): DataError {
  return new DataError('DATASET_CORRUPT', { file, expected, got });
}
