import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import {
  DatasetState,
  type Dataset,
  type DatasetFile,
  type DatasetFormat,
  type DatasetSplit,
  type DatasetSpec,
  type DeepPartial,
  type UploadDatasetRequest,
} from './contract.js';
import { backoffMs, retryDelayMs, sleep, type RetryOptions } from './calls.js';
import { DatasetFailedError, ReloraError } from './errors.js';

/** One source file: on this machine, in memory, or on the server inside a folder that its operator allowed. */
export type UploadFile = ({ path: string } | { content: string | Uint8Array } | { serverPath: string }) & {
  /** By default the name of the path. */
  fileName?: string;
  /** By default from the name: .txt, .jsonl, .parquet. */
  format?: DatasetFormat;
  /** By default divided by heldOutShare. */
  split?: DatasetSplit;
};

export interface UploadOptions {
  /** Id of the data set; with it a broken upload goes on in a later process. Made up when left out. */
  datasetId?: string;
  displayName?: string;
  files: readonly UploadFile[];
  /** Tokenizer, held-out share, text field and seed; every part has a default. */
  spec?: DeepPartial<DatasetSpec>;
  signal?: AbortSignal;
  onProgress?: (progress: UploadProgress) => void;
}

export interface UploadProgress {
  phase: 'uploading' | 'preparing';
  /** 0 to 1 within the phase. */
  ratio: number;
}

export interface UploadCalls {
  upload(messages: AsyncIterable<DeepPartial<UploadDatasetRequest>>): Promise<Dataset>;
  /** Undefined when there is none. */
  get(name: string): Promise<Dataset | undefined>;
}

const chunkBytes = 256 << 10;
const pollMs = { first: 50, max: 1000 };
/** A server notices a broken connection, and lets go of its upload, within a minute and a half. */
const busyMsMax = 100_000;

/** Uploads what is missing of a data set and waits until jobs can use it; throws DatasetFailedError when it cannot be prepared. */
export async function uploadDataset(
  calls: UploadCalls,
  options: UploadOptions,
  retries: RetryOptions,
  signal: AbortSignal,
): Promise<Dataset> {
  const { onProgress } = options;
  const datasetId =
    options.datasetId ?? `dataset-${Date.now().toString(36)}-${randomBytes(4).toString('hex')}`;
  const files = await Promise.all(options.files.map(describe));
  const header = { datasetId, displayName: options.displayName ?? '', files, spec: options.spec };

  let known = await calls.get(`datasets/${datasetId}`);
  let receivedBytes = totalReceived(known);
  let busySince: number | null = null;
  for (let attempts = 1; ; attempts++) {
    try {
      const received = files.map((_, index) => known?.files[index]?.receivedBytes ?? 0);
      const dataset = await calls.upload(messages(header, options.files, received, onProgress));
      return await whenReady(calls, dataset, onProgress, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (isBusy(error) && Date.now() - (busySince ??= Date.now()) < busyMsMax) {
        attempts--; // waiting for the server to notice is no failure
        await sleep(error.retryDelayMs + backoffMs(1, retries), signal);
      } else {
        const delayMs = retryDelayMs(error, attempts, retries);
        if (delayMs === null) throw error;
        await sleep(delayMs, signal);
      }
    }
    known = await calls.get(`datasets/${datasetId}`);
    if (totalReceived(known) > receivedBytes) {
      receivedBytes = totalReceived(known);
      attempts = 0;
      busySince = null;
    }
  }
}

/** The connection of an earlier try broke, and the server has not noticed yet. */
function isBusy(error: unknown): error is ReloraError & { retryDelayMs: number } {
  return error instanceof ReloraError && error.code === 'ABORTED' && error.retryDelayMs !== undefined;
}

function totalReceived(dataset: Dataset | undefined): number {
  return dataset?.files.reduce((sum, file) => sum + file.receivedBytes, 0) ?? 0;
}

async function* messages(
  header: {
    datasetId: string;
    files: readonly Partial<DatasetFile>[];
    displayName: string;
    spec?: DeepPartial<DatasetSpec>;
  },
  sources: readonly UploadFile[],
  received: readonly number[],
  onProgress: UploadOptions['onProgress'],
): AsyncGenerator<DeepPartial<UploadDatasetRequest>> {
  yield { header: { ...header, files: [...header.files] } };
  const total = header.files.reduce((sum, file) => sum + (file.sizeBytes ?? 0), 0);
  let sent = 0;
  for (const [fileIndex, source] of sources.entries()) {
    let offsetBytes = received[fileIndex]!;
    sent += offsetBytes;
    for await (const data of pieces(source, offsetBytes)) {
      yield { chunk: { fileIndex, offsetBytes, data } };
      offsetBytes += data.length;
      sent += data.length;
      onProgress?.({ phase: 'uploading', ratio: sent / total });
    }
  }
}

async function* pieces(source: UploadFile, offset: number): AsyncGenerator<Buffer> {
  if ('serverPath' in source) return;
  if ('content' in source) {
    const bytes = Buffer.from(source.content as Uint8Array);
    for (let start = offset; start < bytes.length; start += chunkBytes)
      yield bytes.subarray(start, start + chunkBytes);
    return;
  }
  const handle = await open(source.path, 'r');
  try {
    for (let position = offset; ;) {
      const buffer = Buffer.allocUnsafe(chunkBytes);
      const { bytesRead } = await handle.read(buffer, 0, chunkBytes, position);
      if (bytesRead === 0) return;
      position += bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  } finally {
    await handle.close();
  }
}

async function describe(source: UploadFile, index: number): Promise<Partial<DatasetFile>> {
  const shared = { format: source.format, split: source.split };
  if ('serverPath' in source)
    return {
      ...shared,
      serverPath: source.serverPath,
      fileName: source.fileName ?? basename(source.serverPath),
    };
  const hash = createHash('sha256');
  if ('content' in source) {
    const bytes = Buffer.from(source.content as Uint8Array);
    return {
      ...shared,
      fileName: source.fileName ?? `text-${index}.txt`,
      sizeBytes: bytes.length,
      sha256: hash.update(bytes).digest('hex'),
    };
  }
  for await (const chunk of createReadStream(source.path)) hash.update(chunk as Buffer);
  return {
    ...shared,
    fileName: source.fileName ?? basename(source.path),
    sizeBytes: (await stat(source.path)).size,
    sha256: hash.digest('hex'),
  };
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
