import type {
  DeleteDatasetRequest,
  DeleteDatasetResponse,
  UndeleteDatasetRequest,
  UndeleteDatasetResponse,
} from '@relora/sdk/contract';
import type { DatasetDeletionResult } from '../datasets/datasetDeletion.js';
import { ServiceError } from '../errors.js';
import type { ApiParts } from './parts.js';
import { parseDatasetName } from './resourceNames.js';
import { toDataset } from './toProto.js';
import type { Principal } from '../access/principal.js';

export type DeleteDatasetParts = Pick<ApiParts, 'datasets' | 'datasetDeletion' | 'uploads' | 'disk'>;

/** Deletes a data set that no unfinished job uses; for validateOnly it answers whether that is possible and what it would free. */
export async function deleteDataset(
  { datasets, datasetDeletion, uploads, disk }: DeleteDatasetParts,
  { name, allowMissing, validateOnly }: DeleteDatasetRequest,
  { tenant }: Principal,
): Promise<DeleteDatasetResponse> {
  const datasetId = parseDatasetName(tenant, 'name', name);
  if (uploads.isOpen(datasetId))
    throw new ServiceError('DATASET_IN_USE', { datasetId, usedBy: 'an upload of it' });
  const result = await datasetDeletion.delete(datasetId, { validateOnly });
  if (result.outcome === 'notFound' && allowMissing) return { dataset: undefined, freedBytes: 0 };
  requireDone(result, datasetId);
  const dataset = await datasets.find(datasetId);
  return {
    dataset: dataset && toDataset(dataset),
    freedBytes: await disk.freedBytes('datasets', datasetId),
  };
}

/** Restores a deleted data set. */
export async function undeleteDataset(
  { datasets, datasetDeletion }: DeleteDatasetParts,
  { name }: UndeleteDatasetRequest,
  { tenant }: Principal,
): Promise<UndeleteDatasetResponse> {
  const datasetId = parseDatasetName(tenant, 'name', name);
  requireDone(await datasetDeletion.undelete(datasetId), datasetId);
  return { dataset: toDataset((await datasets.find(datasetId))!) };
}

function requireDone(result: DatasetDeletionResult, datasetId: string): void {
  switch (result.outcome) {
    case 'done':
      return;
    case 'notFound':
      throw new ServiceError('DATASET_NOT_FOUND', { datasetId });
    case 'preparing':
      throw new ServiceError('DATASET_IN_USE', { datasetId, usedBy: 'its preparation' });
    case 'usedBy':
      throw new ServiceError('DATASET_IN_USE', { datasetId, usedBy: result.name });
  }
}
