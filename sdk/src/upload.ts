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
import { retryDelayMs, sleep, type RetryOptions } from './calls.js';
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
  upload(messages: AsyncIterable<DeepPartial<UploadDatasetRequest>>, signal: AbortSignal | undefined): Promise<Dataset>;
  /** Undefined when there is none. */
  get(name: string, signal: AbortSignal | undefined): Promise<Dataset | undefined>;
}

const chunkBytes = 256 << 10;
const pollMs = { first: 50, max: 1000 };

/** Uploads what is missing of a data set and waits until jobs can use it; throws DatasetFailedError when it cannot be prepared. */
export async function uploadDataset(calls: UploadCalls, options: UploadOptions, retries: RetryOptions): Promise<Dataset> {
  const { signal, onProgress } = options;
  const datasetId = options.datasetId ?? `dataset-${Date.now().toString(36)}-${randomBytes(4).toString('hex')}`;
  const files = await Promise.all(options.files.map(describe));
  const header = { datasetId, displayName: options.displayName ?? '', files, spec: options.spec };

  let dataset: Dataset;
  for (let attempt = 1; ; ) {
    const known = await calls.get(`datasets/${datasetId}`, signal);
    if (known !== undefined && known.state !== DatasetState.UPLOADING && attempt > 1) {
      dataset = known; // the answer to the last attempt was lost, not its bytes
      break;
    }
    const received = files.map((_, index) => known?.files[index]?.receivedBytes ?? 0);
    try {
      dataset = await calls.upload(messages(header, options.files, received, onProgress), signal);
      break;
    } catch (error) {
      signal?.throwIfAborted();
      const delayMs = retryDelayMs(error, attempt++, retries);
      if (delayMs === null) throw error;
      await sleep(delayMs, signal);
    }
  }
  return await whenReady(calls, dataset, onProgress, signal);
}

async function* messages(
  header: { datasetId: string; files: readonly Partial<DatasetFile>[]; displayName: string; spec?: DeepPartial<DatasetSpec> },
  sources: readonly UploadFile[], received: readonly number[], onProgress: UploadOptions['onProgress'],
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
    for (let start = offset; start < bytes.length; start += chunkBytes) yield bytes.subarray(start, start + chunkBytes);
    return;
  }
  const handle = await open(source.path, 'r');
  try {
    for (let position = offset; ; ) {
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
  if ('serverPath' in source) return { ...shared, serverPath: source.serverPath, fileName: source.fileName ?? basename(source.serverPath) };
  const hash = createHash('sha256');
  if ('content' in source) {
    const bytes = Buffer.from(source.content as Uint8Array);
    return { ...shared, fileName: source.fileName ?? `text-${index}.txt`, sizeBytes: bytes.length, sha256: hash.update(bytes).digest('hex') };
  }
  for await (const chunk of createReadStream(source.path)) hash.update(chunk as Buffer);
  return { ...shared, fileName: source.fileName ?? basename(source.path), sizeBytes: (await stat(source.path)).size, sha256: hash.digest('hex') };
}

async function whenReady(
  calls: UploadCalls, uploaded: Dataset, onProgress: UploadOptions['onProgress'], signal: AbortSignal | undefined,
): Promise<Dataset> {
  let dataset = uploaded;
  for (let delayMs = pollMs.first; ; delayMs = Math.min(pollMs.max, delayMs * 2)) {
    switch (dataset.state) {
      case DatasetState.READY:
        return dataset;
      case DatasetState.FAILED: {
        const { reason = '', message = '' } = dataset.failure ?? {};
        throw new DatasetFailedError(`${dataset.name} could not be prepared: ${message}`, { code: 'FAILED_PRECONDITION', reason });
      }
    }
    onProgress?.({ phase: 'preparing', ratio: dataset.preparedRatio });
    await sleep(delayMs, signal);
    const found = await calls.get(dataset.name, signal);
    if (found === undefined) throw new ReloraError(`${dataset.name} does not exist any more`, { code: 'NOT_FOUND' });
    dataset = found;
  }
}
