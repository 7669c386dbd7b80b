import { join } from 'node:path';
import { OpenUploads, type Upload } from '../uploads/openUploads.js';
import type { UploadParts } from '../uploads/uploadParts.js';
import type { Weights } from './weights.js';
import type { WeightsStore } from './weightsStore.js';

/** Receives weights into their folder. */
export class WeightsUploads {
  private readonly uploads: OpenUploads;

  constructor(
    private readonly store: WeightsStore,
    { freeDiskBytesMin }: { freeDiskBytesMin: number },
    parts: UploadParts | null = null,
  ) {
    const touch = async (id: string) => await store.touch(id);
    this.uploads = new OpenUploads({ freeDiskBytesMin, parts, ownerOf: (id) => `weights/${id}`, touch });
  }

  isOpen(weightsId: string): boolean {
    return this.uploads.has(weightsId);
  }

  /** `busy`: another client uploads these weights. `closed`: they are no longer uploading. */
  async open({ id }: Weights): Promise<Upload | 'busy' | 'closed'> {
    return await this.uploads.open<'closed'>(id, async () => {
      // Read again: another upload may have ended since the caller read them.
      const weights = await this.store.find(id);
      if (weights?.state !== 'uploading') return 'closed';
      const folder = this.store.folder(id);
      const files = weights.files.map((file) => ({
        ...file,
        path: join(folder, file.fileName),
        isOnServer: false,
      }));
      return { files, folder };
    });
  }
}
