import type { Dataset } from './dataset.js';
import type { DatasetStore } from './datasetStore.js';

/** `wrongOffset`: bytes must continue at receivedBytes. `tooLong`: more than the declared size. `noSpace`: the disk floor is reached. */
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

/** Receives files. What arrived stays: after a crash an upload goes on at the length of its file. */
export class DatasetUploads {
  constructor(
    private readonly store: DatasetStore,
    private readonly dataFolder: string,
    private readonly options: { freeDiskBytesMin: number },
  ) {}

  /** `busy`: another client uploads this data set. `closed`: it is no longer uploading. */
  async open(_datasetId: string): Promise<DatasetUpload | 'notFound' | 'busy' | 'closed'> {
    throw new Error('not yet');
  }
}
