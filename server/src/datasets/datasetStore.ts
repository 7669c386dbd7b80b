import type { Database } from '../store/database.js';
import type { Dataset, DatasetFile, DatasetSpec } from './dataset.js';

export interface DatasetCursor {
  createTimeMs: number;
  id: string;
}

export interface NewDataset {
  /** Null: the store makes one that sorts by time. */
  datasetId: string | null;
  displayName: string;
  files: Omit<DatasetFile, 'receivedBytes'>[];
  spec: DatasetSpec;
}

/** Data sets: rows, uploaded files and prepared folders, all under datasets/{id} of the data folder. */
export class DatasetStore {
  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
  ) {}

  async find(_datasetId: string): Promise<Dataset | undefined> {
    throw new Error('not yet');
  }

  /** One page, newest first; `next` is null at the end. */
  async list(_page: { after: DatasetCursor | null; datasetsMax: number }): Promise<{ datasets: Dataset[]; next: DatasetCursor | null }> {
    throw new Error('not yet');
  }

  /**
   * Stores a data set, or finds the one with the same id for an upload that goes on. `conflict`: the id exists with other
   * files or settings. A data set of server files needs no bytes: it is `preparing` at once.
   */
  async register(_dataset: NewDataset): Promise<Dataset | 'conflict'> {
    throw new Error('not yet');
  }

  /** Folder with the manifest and token shards of a ready data set; what the engine opens. */
  preparedFolder(_datasetId: string): string {
    throw new Error('not yet');
  }
}
