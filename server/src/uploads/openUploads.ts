import { mkdir } from 'node:fs/promises';
import {
  foldersOf,
  ReceivedFiles,
  type ExpectedFile,
  type KeptParts,
  type ReceiveResult,
  type WriteResult,
} from './receivedFiles.js';
import type { UploadParts } from './uploadParts.js';

/** One client's upload. Must be closed, also after an error. */
export interface Upload {
  readonly receivedBytes: readonly number[];
  write(fileIndex: number, offset: number, data: Uint8Array): Promise<WriteResult>;
  complete(): Promise<ReceiveResult>;
  close(): Promise<void>;
}

/**
 * Uploads in progress: each may only be sent by one client at a time. What arrived is kept: an interrupted upload resumes at the length of
 * its file.
 */
export class OpenUploads {
  private readonly ids = new Set<string>();

  /** @param options `touch` records that bytes are arriving, because other servers do not see the files */
  constructor(
    private readonly options: {
      freeDiskBytesMin: number;
      /** Null if no other server shares the store. */
      parts: UploadParts | null;
      /** For example `datasets/…`. */
      ownerOf(id: string): string;
      touch(id: string): Promise<void>;
    },
  ) {}

  has(id: string): boolean {
    return this.ids.has(id);
  }

  /**
   * `busy`: another client uploads it. `find` returns the expected files and their folder, or why there are none; it is called when no
   * other upload of the same id can be open.
   */
  async open<Refusal extends string>(
    id: string,
    find: () => Promise<{ files: ExpectedFile[]; folder: string } | Refusal>,
  ): Promise<Upload | Refusal | 'busy'> {
    if (this.ids.has(id)) return 'busy';
    this.ids.add(id);
    const release = (): void => void this.ids.delete(id);
    try {
      const found = await find();
      if (typeof found === 'string') {
        release();
        return found;
      }
      await this.options.touch(id);
      const folders = new Set([found.folder, ...foldersOf(found.files)]);
      for (const folder of folders) await mkdir(folder, { recursive: true });
      const received = new ReceivedFiles(
        found.files,
        found.folder,
        this.options.freeDiskBytesMin,
        this.partsOf(id),
      );
      await received.bring();
      return {
        receivedBytes: received.receivedBytes,
        write: async (fileIndex, offset, data) => await received.write(fileIndex, offset, data),
        complete: async () => await received.complete(),
        close: async () => {
          await received.close().finally(release);
          await this.options.touch(id).catch(() => {}); // if this fails, the time since its beginning counts
        },
      };
    } catch (error) {
      release();
      throw error;
    }
  }

  private partsOf(id: string): KeptParts | null {
    const { parts } = this.options;
    if (parts === null) return null;
    const owner = this.options.ownerOf(id);
    return {
      partBytes: parts.partBytes,
      bring: async (index, path) => await parts.bring(owner, index, path),
      add: async (index, path, start, end) => await parts.add(owner, index, path, start, end),
      drop: async (index) => await parts.drop(owner, index),
    };
  }
}
