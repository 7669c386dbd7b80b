import type { DatasetServiceDefinition } from '@relora/sdk/contract';
import type { Dataset } from '../datasets/dataset.js';
import type { DatasetCursor } from '../datasets/datasetStore.js';
import { ServiceError } from '../errors.js';
import type { Implementation } from '../grpc/service.js';
import { parseDatasetHeader } from './datasetHeader.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { invalid, receiveChunks, unfinished } from './receiveUpload.js';
import { parseDatasetName } from './resourceNames.js';
import { taskError } from './taskError.js';
import { toDataset } from './toProto.js';

/** Receives, lists and shows data sets. */
export function datasetService(parts: ApiParts): Implementation<typeof DatasetServiceDefinition> {
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
      if (upload === 'busy') throw new ServiceError('UPLOAD_BUSY', { name: `datasets/${datasetId}` });
      if (typeof upload === 'string') return { dataset: toDataset(await find(datasetId)) };
      try {
        const open = {
          name: `datasets/${datasetId}`,
          files: registered.files,
          receivedBytes: upload.receivedBytes,
          write: upload.write,
        };
        const { signal } = context;
        const onReceived = (bytes: number) => metrics.receivedBytes.inc(bytes);
        await receiveChunks(messages, open, { config, signal, onReceived });
        const result = await upload.finish();
        if (result.outcome !== 'done') throw unfinished(result, open);
        return { dataset: toDataset(result.dataset) };
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
      const split = checks.word('split', request.split, enums.DatasetSplit, 'train' as const);
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
}
