import { basename } from 'node:path';
import {
  DatasetState,
  UploadDatasetHeader,
  type Dataset,
  type DatasetFile,
  type DatasetFormat,
  type DatasetSpec,
  type DatasetSplit,
  type DeepPartial,
  type UploadDatasetRequest,
} from './contract.js';
import { sleep } from './aborts.js';
import { split, type CallOptions } from './callOptions.js';
import { DatasetFailedError, ReloraError } from './errors.js';
import { fewAtOnce } from './fewAtOnce.js';
import type { Patience } from './patience.js';
import { checkMessage } from './requestFields.js';
import { measure, messagesOf, newId, resumeUpload } from './resumeUpload.js';

/** One source file: on this machine, in memory, or on the server in a folder that its operator allowed. */
export type UploadFile = (
  | (({ path: string } | { content: string | Uint8Array }) & {
      /** Default: the file name in the path. */
      fileName?: string;
    })
  | { serverPath: string }
) & {
  /** Default: recognized from the content, or if that is not clear, from the name. */
  format?: DatasetFormat;
  /** Default: divided by heldOutShare. */
  split?: DatasetSplit;
};

export interface UploadOptions extends CallOptions {
  /** Id of the data set; with it a later process can resume an interrupted upload. Default: a new one. */
  datasetId?: string;
  displayName?: string;
  /** Labels to find it by. */
  labels?: Record<string, string>;
  /** A data set that the files are appended to, as a new version; it stays as it is. */
  base?: string;
  files: readonly UploadFile[];
  /** Tokenizer, held-out share, text field and seed; every part has a default. */
  spec?: DeepPartial<DatasetSpec>;
  onProgress?: (progress: UploadProgress) => void;
}

export interface UploadProgress {
  phase: 'uploading' | 'preparing';
  /** 0 to 1 within the phase. */
  ratio: number;
}

export interface UploadCalls {
  upload(messages: AsyncIterable<DeepPartial<UploadDatasetRequest>>): Promise<Dataset>;
  /** Undefined if it does not exist. */
  get(name: string): Promise<Dataset | undefined>;
}

const pollMs = { first: 50, max: 1000 };

/** Uploads the missing bytes of a data set and waits until jobs can use it; throws DatasetFailedError if it cannot be prepared. */
export async function uploadDataset(
  calls: UploadCalls,
  options: UploadOptions,
  patience: Patience,
  signal: AbortSignal,
): Promise<Dataset> {
  const [{ files: sources, onProgress, datasetId = newId('dataset'), ...given }] = split(options);
  const files = await fewAtOnce(sources, describe);
  const header = { ...given, datasetId, files };
  checkMessage(UploadDatasetHeader, header, '');
  const total = files.reduce((sum, file) => sum + (file.sizeBytes ?? 0), 0);
  const uploaded = await resumeUpload(
    {
      sources: sources.map((source) => ('serverPath' in source ? null : source)),
      upload: async (chunks) => await calls.upload(messagesOf(header, chunks)),
      known: async () => await calls.get(`datasets/${datasetId}`),
      onSent: (bytes) => onProgress?.({ phase: 'uploading', ratio: bytes / total }),
    },
    patience,
  );
  return await whenReady(calls, uploaded, onProgress, signal);
}

async function describe(source: UploadFile, index: number): Promise<Partial<DatasetFile>> {
  if ('serverPath' in source) return source; // the server takes its name from the path
  const fileName = 'path' in source ? basename(source.path) : `text-${index}.txt`;
  // Other fields are passed on as given, so that an unknown field is detected.
  const { path: _, content: __, ...given } = { path: '', content: '', ...source };
  return { ...given, fileName: given.fileName ?? fileName, ...(await measure(source)) };
}

async function whenReady(
  calls: UploadCalls,
  uploaded: Dataset,
  onProgress: UploadOptions['onProgress'],
  signal: AbortSignal,
): Promise<Dataset> {
  let dataset = uploaded;
  for (let delayMs = pollMs.first; ; delayMs = Math.min(pollMs.max, delayMs * 2)) {
    switch (dataset.state) {
      case DatasetState.READY:
        return dataset;
      case DatasetState.FAILED: {
        const { reason = '', message = '' } = dataset.failure ?? {};
        throw new DatasetFailedError(`${dataset.name} could not be prepared: ${message}`, {
          code: 'FAILED_PRECONDITION',
          reason,
        });
      }
    }
    onProgress?.({ phase: 'preparing', ratio: dataset.preparedRatio });
    await sleep(delayMs, signal);
    const found = await calls.get(dataset.name);
    if (found === undefined)
      throw new ReloraError(`${dataset.name} does not exist any more`, { code: 'NOT_FOUND' });
    dataset = found;
  }
}
