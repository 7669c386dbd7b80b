import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { ReceivedFiles, type ReceiveResult, type WriteResult } from '../uploads/receivedFiles.js';
import type { Weights } from './weights.js';
import type { WeightsStore } from './weightsStore.js';

/** One client's upload of weights. Must be closed, also after an error. */
export interface WeightsUpload {
  readonly receivedBytes: readonly number[];
  write(fileIndex: number, offset: number, data: Uint8Array): Promise<WriteResult>;
  complete(): Promise<ReceiveResult>;
  close(): Promise<void>;
}

/** Receives weights, each by one client at a time. What arrived stays: an upload that broke goes on at the length of its file. */
export class WeightsUploads {
  private readonly uploading = new Set<string>();

  constructor(
    private readonly store: WeightsStore,
    private readonly options: { freeDiskBytesMin: number },
  ) {}

  isOpen(weightsId: string): boolean {
    return this.uploading.has(weightsId);
  }

  /** `busy`: another client uploads these weights. */
  async open({ id }: Weights): Promise<WeightsUpload | 'busy' | 'closed'> {
    if (this.uploading.has(id)) return 'busy';
    this.uploading.add(id);
    const release = (): void => void this.uploading.delete(id);
    try {
      // Looked at again: another upload may have ended since the caller did.
      const weights = await this.store.find(id);
      if (weights?.state !== 'uploading') {
        release();
        return 'closed';
      }
      const folder = this.store.folder(id);
      await mkdir(folder, { recursive: true });
      const expected = weights.files.map((file) => ({
        ...file,
        path: join(folder, file.fileName),
        isOnServer: false,
      }));
      const received = new ReceivedFiles(expected, folder, this.options.freeDiskBytesMin);
      return {
        receivedBytes: received.receivedBytes,
        write: async (fileIndex, offset, data) => await received.write(fileIndex, offset, data),
        complete: async () => await received.complete(),
        close: async () => {
          await received.close();
          release();
        },
      };
    } catch (error) {
      release();
      throw error;
    }
  }
}
