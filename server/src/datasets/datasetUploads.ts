import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ReceivedFiles, type ReceiveResult, type WriteResult } from '../uploads/receivedFiles.js';
import type { Dataset } from './dataset.js';
import type { DatasetStore } from './datasetStore.js';

export type FinishResult =
  { outcome: 'done'; dataset: Dataset } | Exclude<ReceiveResult, { outcome: 'done' }>;

/** One client's upload of one data set. Must be closed, also after an error. */
export interface DatasetUpload {
  readonly receivedBytes: readonly number[];
  write(fileIndex: number, offset: number, data: Uint8Array): Promise<WriteResult>;
  /** Makes the data set `preparing` once every file is safe and right. */
  finish(): Promise<FinishResult>;
  close(): Promise<void>;
}

/** Receives files. What arrived stays: after a crash an upload goes on at the length of its file. */
export class DatasetUploads {
  private readonly uploading = new Set<string>();

  constructor(
    private readonly store: DatasetStore,
    private readonly options: { freeDiskBytesMin: number },
  ) {}

  /** `busy`: another client uploads this data set. `closed`: it is no longer uploading. */
  async open(datasetId: string): Promise<DatasetUpload | 'notFound' | 'busy' | 'closed'> {
    if (this.uploading.has(datasetId)) return 'busy';
    this.uploading.add(datasetId);
    const release = (): void => void this.uploading.delete(datasetId);
    try {
      const dataset = await this.store.find(datasetId);
      if (dataset?.state === 'uploading') return await this.begin(dataset, release);
      release();
      return dataset === undefined ? 'notFound' : 'closed';
    } catch (error) {
      release();
      throw error;
    }
  }

  private async begin({ id, files }: Dataset, release: () => void): Promise<DatasetUpload> {
    const folder = dirname(this.store.uploadPath(id, 0));
    await mkdir(folder, { recursive: true });
    const expected = files.map((file, index) => ({
      ...file,
      path: this.store.uploadPath(id, index),
      isOnServer: file.serverPath !== null,
    }));
    const received = new ReceivedFiles(expected, folder, this.options.freeDiskBytesMin);
    return {
      receivedBytes: received.receivedBytes,
      write: async (fileIndex, offset, data) => await received.write(fileIndex, offset, data),
      finish: async () => {
        const result = await received.complete();
        return result.outcome === 'done'
          ? { outcome: 'done', dataset: await this.store.uploaded(id) }
          : result;
      },
      close: async () => {
        await received.close();
        release();
      },
    };
  }
}
