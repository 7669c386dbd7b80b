import {
  Dataset as DatasetProto,
  type DatasetServiceDefinition,
  type PreviewDatasetRequest,
  type PreviewDatasetResponse,
  type UploadDatasetRequest,
} from '@relora/sdk/contract';
import type { Dataset } from '../datasets/dataset.js';
import type { DatasetCursor, DatasetStore } from '../datasets/datasetStore.js';
import { ServiceError } from '../errors.js';
import type { CallContext, Implementation } from '../grpc/service.js';
import { deleteDataset, undeleteDataset } from './deleteDataset.js';
import { parseDatasetHeader } from './datasetHeader.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import { fillPage } from './fillPage.js';
import { ingestFiles } from './ingestFiles.js';
import type { ApiParts } from './parts.js';
import { invalid, receiveChunks, unfinished } from './receiveUpload.js';
import { parseDatasetName } from './resourceNames.js';
import { taskError } from './taskError.js';
import { toDataset, toDatasetSummary } from './toProto.js';

/** Receives, lists and shows data sets. */
export function datasetService(parts: ApiParts): Implementation<typeof DatasetServiceDefinition> {
  const { datasets, pageTokens } = parts;
  return {
    uploadDataset: async (request, context) => ({
      dataset: toDataset(await uploadDataset(parts, request, context)),
    }),

    async getDataset(request, { caller }) {
      return {
        dataset: toDataset(
          await requireDataset(datasets, parseDatasetName(caller.tenant, 'name', request.name)),
        ),
      };
    },

    async listDatasets(request, { caller: { tenant } }) {
      const checks = new FieldChecks();
      const datasetsMax = parsePageSize(checks, request.pageSize);
      const labels = checks.labels('labels', request.labels);
      const owner = checks.text('owner', request.owner, 256);
      checks.throwIfWrong();
      const { showDeleted: withDeleted } = request;
      const same = ['datasets', tenant, withDeleted, Object.entries(labels).sort(), owner];
      const after = pageTokens.read<DatasetCursor>(same, request.pageToken);
      const { messages, next } = await fillPage({
        after,
        itemsMax: datasetsMax,
        bytesMax: parts.config.pageBytesMax,
        read: async (place, itemsMax) => {
          const page = await datasets.list({
            ...{ tenant, after: place, datasetsMax: itemsMax, withDeleted, labels, owner },
          });
          return { items: page.datasets, next: page.next };
        },
        placeOf: ({ createTimeMs, id }) => ({ createTimeMs, id }),
        type: DatasetProto,
        toMessage: toDatasetSummary,
      });
      return { datasets: messages, nextPageToken: pageTokens.write(same, next) };
    },

    deleteDataset: async (request, { caller }) => await deleteDataset(parts, request, caller),
    undeleteDataset: async (request, { caller }) => await undeleteDataset(parts, request, caller),
    previewDataset: async (request, context) => await previewDataset(parts, request, context),
  };
}

/** Why no data set can be uploaded under a name. */
const refusals = {
  conflict: 'DATASET_EXISTS',
  deleted: 'DATASET_DELETED',
  nameKept: 'DATASET_NAME_KEPT',
} as const;

/** Receives the files of a data set; also answers the retry of an upload whose first answer was lost. */
async function uploadDataset(
  parts: ApiParts,
  request: AsyncIterable<UploadDatasetRequest>,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<Dataset> {
  const { config, datasets, uploads, metrics } = parts;
  const messages = request[Symbol.asyncIterator]();
  const first = await messages.next();
  if (first.done === true || first.value.header === undefined)
    throw invalid('header', 'the first message', first.done === true ? 'nothing' : 'a chunk');
  const newDataset = await parseDatasetHeader(parts, caller, first.value.header);
  const registered = await datasets.register(newDataset);
  if (typeof registered === 'string')
    throw new ServiceError(refusals[registered], { datasetId: newDataset.datasetId ?? '' });
  if (registered.state !== 'uploading') return registered;

  const datasetId = registered.id;
  using _place = parts.uploadPlaces.take();
  const upload = await uploads.open(datasetId);
  if (upload === 'busy') throw new ServiceError('UPLOAD_BUSY', { name: `datasets/${datasetId}` });
  if (upload === 'deleted') throw new ServiceError('DATASET_DELETED', { datasetId });
  if (typeof upload === 'string') return await requireDataset(datasets, datasetId);
  try {
    const open = {
      name: `datasets/${datasetId}`,
      files: registered.files,
      receivedBytes: upload.receivedBytes,
      write: upload.write,
    };
    const onReceived = (bytes: number) => metrics.receivedBytes.inc(bytes);
    const receiving = { config, signal, onReceived };
    const onServer = registered.files.flatMap(({ serverPath: path }, index) =>
      path === null ? [] : [{ path, field: `header.files[${index}].server_path` }],
    );
    if (onServer.length > 0) await ingestFiles(parts, onServer, open, receiving);
    else await receiveChunks(messages, open, receiving);
    const result = await upload.finish();
    if (result.outcome === 'deleted') throw new ServiceError('DATASET_DELETED', { datasetId });
    if (result.outcome !== 'done') throw unfinished(result, open);
    return result.dataset;
  } finally {
    await upload.close();
  }
}

/** The first tokens of a part, as a model sees them. */
async function previewDataset(
  { datasets, stage, tasks, stopping }: ApiParts,
  request: PreviewDatasetRequest,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<PreviewDatasetResponse> {
  const datasetId = parseDatasetName(caller.tenant, 'name', request.name);
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
  const dataset = await requireDataset(datasets, datasetId);
  if (dataset.state !== 'ready')
    throw new ServiceError('DATASET_NOT_READY', { datasetId, state: dataset.state.toUpperCase() });
  const preparedFolder = datasets.preparedFolder(datasetId);
  const release = await stage.take(`datasets/${datasetId}/prepared`);
  try {
    return {
      tokens: await tasks.previewDataset(
        { preparedFolder, split, tokenCount },
        AbortSignal.any([signal, stopping]),
      ),
    };
  } catch (error) {
    throw taskError(error, request.name, signal, stopping);
  } finally {
    release();
  }
}

export async function requireDataset(datasets: DatasetStore, datasetId: string): Promise<Dataset> {
  const dataset = await datasets.find(datasetId);
  if (dataset === undefined) throw new ServiceError('DATASET_NOT_FOUND', { datasetId });
  return dataset;
}
