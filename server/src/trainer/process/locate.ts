import { Dataset, locateDocuments, TrainingData, type LocatedDocument } from '@relora/engine/data';
import type { LocateTask } from '../messages.js';

/** Finds documents of a run in its data sets. */
export async function locate({ datasetFolders, spec, documents }: LocateTask): Promise<LocatedDocument[]> {
  const datasets: Dataset[] = [];
  try {
    for (const folder of datasetFolders) datasets.push(await Dataset.open(folder, { verify: false }));
    return await locateDocuments(new TrainingData(spec, datasets), documents);
  } finally {
    for (const dataset of datasets) await dataset.close();
  }
}
