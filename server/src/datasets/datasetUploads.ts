import { dirname } from 'node:path';
import { OpenUploads, type Upload } from '../uploads/openUploads.js';
import { giveThen, type Stage } from '../store/stage.js';
import { partsFolder, type UploadParts } from '../uploads/uploadParts.js';
import type { ReceiveResult } from '../uploads/receivedFiles.js';
import type { Dataset } from './dataset.js';
import type { DatasetStore } from './datasetStore.js';

export type FinishResult =
  | { outcome: 'done'; dataset: Dataset }
  | { outcome: 'deleted' }
  | Exclude<ReceiveResult, { outcome: 'done' }>;

/** One client's upload of one data set. Must be closed, also after an error. */
export interface DatasetUpload extends Omit<Upload, 'complete'> {
  /** Makes the data set `preparing` once every file is durable and verified. `deleted`: not before it is restored. */
  finish(): Promise<FinishResult>;
}

/** Receives the files of data sets. */
export class DatasetUploads {
  private readonly uploads: OpenUploads;

  constructor(
    private readonly store: DatasetStore,
    private readonly stage: Stage,
    { freeDiskBytesMin }: { freeDiskBytesMin: number },
    private readonly parts: UploadParts | null = null,
  ) {
    const touch = async (id: string) => await store.touch(id);
    this.uploads = new OpenUploads({ freeDiskBytesMin, parts, ownerOf: (id) => `datasets/${id}`, touch });
  }

  isOpen(id: string): boolean {
    return this.uploads.has(id);
  }

  /** `busy`: another client uploads this data set. `closed`: it is no longer uploading. */
  async open(id: string): Promise<DatasetUpload | 'notFound' | 'busy' | 'closed' | 'deleted'> {
    const upload = await this.uploads.open<'notFound' | 'closed' | 'deleted'>(id, async () => {
      const dataset = await this.store.find(id);
      if (dataset === undefined) return 'notFound';
      if (dataset.deleteTimeMs !== null) return 'deleted';
      if (dataset.state !== 'uploading') return 'closed';
      const files = dataset.files.map((file, index) => ({
        ...file,
        path: this.store.uploadPath(id, index),
        // With a shared store, the other servers need a copy of it.
        isOnServer: file.serverPath !== null && this.parts === null,
      }));
      return { files, folder: dirname(this.store.uploadPath(id, 0)) };
    });
    if (typeof upload === 'string') return upload;
    const { complete, ...shared } = upload;
    const finish = async (): Promise<FinishResult> => {
      const result = await complete();
      if (result.outcome !== 'done') return result;
      const given = { folder: `datasets/${id}/uploads`, maker: { kind: 'uploads', fence: 0 } as const };
      const dataset = await giveThen(
        this.stage,
        [given],
        async (name) =>
          await this.store.uploaded(id, async (trx) => {
            await name(trx);
            await this.stage.forget(trx, partsFolder(`datasets/${id}`));
          }),
      );
      return dataset === 'deleted' ? { outcome: dataset } : { outcome: 'done', dataset };
    };
    return { ...shared, finish };
  }
}
