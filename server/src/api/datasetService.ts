import type { DatasetServiceImplementation, UploadDatasetRequest } from '@relora/sdk/contract';
import type { Dataset } from '../datasets/dataset.js';
import type { DatasetCursor } from '../datasets/datasetStore.js';
import type { DatasetUpload, FinishResult, WriteResult } from '../datasets/datasetUploads.js';
import { ServiceError } from '../errors.js';
import { parseDatasetHeader } from './datasetHeader.js';
import { datasetSplits } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { parseDatasetName } from './resourceNames.js';
import { taskError } from './taskError.js';
import { toDataset } from './toProto.js';

const chunkBytesMax = 1 << 20;

/** Receives, lists and shows data sets. */
export function datasetService(parts: ApiParts): DatasetServiceImplementation {
  const { config, datasets, uploads, tasks, pageTokens, metrics, stopping } = parts;
  return {
    async uploadDataset(request, context) {
      const messages = request[Symbol.asyncIterator]();
      const first = await messages.next();
      if (first.done === true || first.value.header === undefined)
        throw invalid('header', 'the first message', first.done === true ? 'nothing' : 'a chunk');
      const newDataset = await parseDatasetHeader(parts, first.value.header);
      const registered = await datasets.register(newDataset);
      if (registered === 'conflict')
        throw new ServiceError('DATASET_EXISTS', { datasetId: newDataset.datasetId ?? '' });
      // Also the answer to a retry whose first answer was lost.
      if (registered.state !== 'uploading') return { dataset: toDataset(registered) };

      const datasetId = registered.id;
      const upload = await uploads.open(datasetId);
      if (upload === 'busy') throw new ServiceError('UPLOAD_BUSY', { datasetId });
      if (typeof upload === 'string') return { dataset: toDataset(await find(datasetId)) };
      try {
        // One chunk is awaited at a time: what the disk cannot take, HTTP/2 holds back at the sender.
        for (;;) {
          const next = await unlessAborted(messages.next(), stopping);
          if (next.done === true) break;
          if (context.signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
          await receive(upload, registered, next.value);
        }
        return { dataset: toDataset(finished(await upload.finish(), registered, upload)) };
      } finally {
        await upload.close();
      }
    },

    async getDataset(request) {
      return { dataset: toDataset(await find(parseDatasetName('name', request.name))) };
    },

    async listDatasets(request) {
      const checks = new FieldChecks();
      const datasetsMax = parsePageSize(checks, request.pageSize);
      checks.throwIfWrong();
      const after = pageTokens.read<DatasetCursor>(['datasets'], request.pageToken);
      const page = await datasets.list({ after, datasetsMax });
      return {
        datasets: page.datasets.map(toDataset),
        nextPageToken: pageTokens.write(['datasets'], page.next),
      };
    },

    async previewDataset(request, context) {
      const datasetId = parseDatasetName('name', request.name);
      const checks = new FieldChecks();
      const tokenCount = checks.integer(
        'token_count',
        request.tokenCount === 0 ? undefined : request.tokenCount,
        64,
        1,
        1024,
      );
      const split = checks.choice('split', request.split, datasetSplits, 'TRAIN or HELD_OUT') ?? 'train';
      checks.throwIfWrong();
      const dataset = await find(datasetId);
      if (dataset.state !== 'ready')
        throw new ServiceError('DATASET_NOT_READY', { datasetId, state: dataset.state.toUpperCase() });
      const preparedFolder = datasets.preparedFolder(datasetId);
      try {
        return {
          tokens: await tasks.previewDataset(
            { preparedFolder, split, tokenCount },
            AbortSignal.any([context.signal, stopping]),
          ),
        };
      } catch (error) {
        throw taskError(error, request.name, context.signal, stopping);
      }
    },
  };

  async function find(datasetId: string): Promise<Dataset> {
    const dataset = await datasets.find(datasetId);
    if (dataset === undefined) throw new ServiceError('DATASET_NOT_FOUND', { datasetId });
    return dataset;
  }

  async function receive(
    upload: DatasetUpload,
    dataset: Dataset,
    { chunk }: UploadDatasetRequest,
  ): Promise<void> {
    if (chunk === undefined) throw invalid('chunk', 'chunks after the header', 'another message');
    const { fileIndex, offsetBytes, data } = chunk;
    if (data.length > chunkBytesMax)
      throw invalid('chunk.data', `at most ${chunkBytesMax} bytes`, String(data.length));
    const result: WriteResult = await upload.write(fileIndex, offsetBytes, data);
    switch (result) {
      case 'written':
        metrics.receivedBytes.inc(data.length);
        return;
      case 'noFile':
        throw invalid(
          'chunk.file_index',
          `an index of header.files, 0 to ${dataset.files.length - 1}`,
          String(fileIndex),
        );
      case 'wrongOffset':
        throw new ServiceError('UPLOAD_OFFSET_WRONG', {
          fileIndex,
          offsetBytes,
          receivedBytes: upload.receivedBytes[fileIndex] ?? 0,
        });
      case 'tooLong':
        throw new ServiceError('UPLOAD_TOO_LONG', {
          fileIndex,
          sizeBytes: dataset.files[fileIndex]?.sizeBytes ?? 0,
        });
      case 'noSpace':
        throw new ServiceError('DISK_FULL', { freeBytesMin: config.freeDiskBytesMin });
    }
  }
}

function finished(result: FinishResult, dataset: Dataset, upload: DatasetUpload): Dataset {
  switch (result.outcome) {
    case 'done':
      return result.dataset;
    case 'wrongHash':
      throw new ServiceError('UPLOAD_HASH_WRONG', {
        fileIndex: dataset.files.findIndex(({ fileName }) => fileName === result.fileName),
        fileName: result.fileName,
        expectedSha256: result.expected,
        actualSha256: result.actual,
      });
    case 'incomplete': {
      const missing = dataset.files
        .map((file, index) => ({ ...file, received: upload.receivedBytes[index] ?? 0 }))
        .filter((file) => file.received < file.sizeBytes)
        .map((file) => `${file.fileName} has ${file.received} of ${file.sizeBytes} bytes`);
      throw new ServiceError('UPLOAD_INCOMPLETE', {
        datasetId: dataset.id,
        missing: missing.slice(0, 5).join(', '),
      });
    }
  }
}

/** Gives up waiting for a silent client when the server stops; what it sent so far stays. */
async function unlessAborted<T>(message: Promise<T>, stopping: AbortSignal): Promise<T> {
  let stop = (): void => {};
  const stopped = new Promise<never>((_, reject) => {
    stop = () => reject(new ServiceError('SERVER_STOPPING', {}));
    stopping.addEventListener('abort', stop, { once: true });
    if (stopping.aborted) stop();
  });
  try {
    return await Promise.race([message, stopped]);
  } finally {
    stopping.removeEventListener('abort', stop);
  }
}

function invalid(field: string, expected: string, got: string): ServiceError {
  return new ServiceError('REQUEST_INVALID', { problems: [{ field, expected, got }] });
}
