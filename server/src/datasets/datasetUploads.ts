import { createHash, type Hash } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { mkdir, open, rm, statfs, type FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import { syncFolder } from '../store/folders.js';
import type { Dataset, DatasetFile } from './dataset.js';
import type { DatasetStore } from './datasetStore.js';

/**
 * `noFile`: no uploaded file has this index. `wrongOffset`: bytes must continue at receivedBytes. `tooLong`: more than the
 * declared size. `noSpace`: the disk floor is reached, or the disk is full.
 */
export type WriteResult = 'written' | 'noFile' | 'wrongOffset' | 'tooLong' | 'noSpace';

/** `incomplete`: bytes are missing and the upload can go on. `wrongHash`: the named file was dropped and must be sent again. */
export type FinishResult =
  | { outcome: 'done'; dataset: Dataset }
  | { outcome: 'incomplete' }
  | { outcome: 'wrongHash'; fileName: string; expected: string; actual: string };

/** One client's upload of one data set. Must be closed, also after an error. */
export interface DatasetUpload {
  /** Bytes received so far by file, kept up to date by write. */
  readonly receivedBytes: readonly number[];
  /** Appends bytes; they are in the file, but only safe against a power cut after finish. */
  write(fileIndex: number, offset: number, data: Uint8Array): Promise<WriteResult>;
  /** Syncs and checks every file and makes the data set `preparing`; safe when it resolves. */
  finish(): Promise<FinishResult>;
  close(): Promise<void>;
}

/** Space is asked for once in so many bytes: a look for every chunk would cost more than it tells. */
const spaceCheckBytes = 64 * 2 ** 20;

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
      if (dataset?.state === 'uploading') {
        const folder = dirname(this.store.uploadPath(datasetId, 0));
        await mkdir(folder, { recursive: true });
        return new Upload(this.store, dataset, folder, this.options.freeDiskBytesMin, release);
      }
      release();
      return dataset === undefined ? 'notFound' : 'closed';
    } catch (error) {
      release();
      throw error;
    }
  }
}

interface Target {
  file: DatasetFile;
  path: string;
  handle: FileHandle | undefined;
  /** Of all bytes so far; null when some came in an earlier upload, so that the file must be read again. */
  hash: Hash | null;
}

class Upload implements DatasetUpload {
  readonly receivedBytes: number[];
  private readonly targets: Target[];
  private bytesUntilCheck = 0;

  constructor(
    private readonly store: DatasetStore,
    private readonly dataset: Dataset,
    private readonly folder: string,
    private readonly freeDiskBytesMin: number,
    private readonly release: () => void,
  ) {
    this.receivedBytes = dataset.files.map(({ receivedBytes }) => receivedBytes);
    this.targets = dataset.files.map((file, index) => ({
      file,
      path: store.uploadPath(dataset.id, index),
      handle: undefined,
      hash: file.receivedBytes === 0 ? createHash('sha256') : null,
    }));
  }

  async write(fileIndex: number, offset: number, data: Uint8Array): Promise<WriteResult> {
    const target = this.targets[fileIndex];
    const received = this.receivedBytes[fileIndex];
    if (target === undefined || received === undefined || target.file.serverPath !== null) return 'noFile';
    if (offset !== received) return 'wrongOffset';
    if (received + data.length > target.file.sizeBytes) return 'tooLong';
    if (!(await this.hasSpaceFor(data.length))) return 'noSpace';

    // Ours alone: not through a link that somebody laid, and never another file than the one we made.
    target.handle ??= await open(
      target.path,
      constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW,
      0o600,
    );
    try {
      for (let written = 0; written < data.length;) {
        written += (await target.handle.write(data, written, data.length - written, received + written))
          .bytesWritten;
      }
    } catch (error) {
      if (!['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
      await target.handle.truncate(received);
      return 'noSpace';
    }
    target.hash?.update(data);
    this.receivedBytes[fileIndex] = received + data.length;
    return 'written';
  }

  async finish(): Promise<FinishResult> {
    if (this.targets.some(({ file }, index) => this.receivedBytes[index] !== file.sizeBytes))
      return { outcome: 'incomplete' };
    for (const [index, target] of this.targets.entries()) {
      const { file, path } = target;
      if (file.serverPath !== null) continue;
      const handle =
        target.handle ??
        (await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW, 0o600));
      target.handle = undefined;
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
      const actual = target.hash === null ? await sha256Of(path) : target.hash.digest('hex');
      target.hash = null;
      if (file.sha256 !== null && actual !== file.sha256) {
        await rm(path);
        this.receivedBytes[index] = 0;
        target.hash = createHash('sha256');
        return { outcome: 'wrongHash', fileName: file.fileName, expected: file.sha256, actual };
      }
    }
    await syncFolder(this.folder);
    await syncFolder(dirname(this.folder));
    await syncFolder(dirname(dirname(this.folder)));
    return { outcome: 'done', dataset: await this.store.uploaded(this.dataset.id) };
  }

  async close(): Promise<void> {
    for (const target of this.targets) {
      await target.handle?.close();
      target.handle = undefined;
    }
    this.release();
  }

  private async hasSpaceFor(byteCount: number): Promise<boolean> {
    this.bytesUntilCheck -= byteCount;
    if (this.bytesUntilCheck > 0) return true;
    const { bavail, bsize } = await statfs(this.folder);
    if (bavail * bsize - byteCount < this.freeDiskBytesMin) {
      this.bytesUntilCheck = 0;
      return false;
    }
    this.bytesUntilCheck = spaceCheckBytes;
    return true;
  }
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(path, { highWaterMark: 2 ** 20 })) hash.update(piece as Buffer);
  return hash.digest('hex');
}
