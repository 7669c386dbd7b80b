import { exportModel, measureExport, withCheckpointWeights } from '@relora/engine';
import { DataError, Dataset, openTokenizer } from '@relora/engine/data';
import type { ExportResult } from '../../artifacts/artifact.js';
import type { ExportTask } from '../messages.js';
import { deviceFor } from './device.js';

/** Writes the weights of a checkpoint into a new folder, with one tensor in memory at a time, and compares the result with them. */
export async function exportWeights(task: ExportTask): Promise<ExportResult> {
  const device = await deviceFor(task.device, 'float32');
  const tokenizer = await openTokenizer(task.datasetFolder);
  const dataset = await datasetOf(task.datasetFolder);
  const { path, manifestSha256 } = task.checkpoint;
  try {
    return await withCheckpointWeights(device, path, tokenizer, { manifestSha256 }, async (source) => {
      const { files, castErrorMax } = await exportModel(source, task.outputFolder, task);
      const difference = await measureExport(device, source, task.outputFolder, task, dataset, task.check);
      const digests = files.map(({ fileName, sizeBytes, sha256 }) => ({ fileName, sizeBytes, sha256 }));
      const measured = difference === null ? {} : { difference };
      return { files: digests, castErrorMax, ...measured, cycle: source.lineage.cycle };
    });
  } finally {
    await dataset?.close();
  }
}

/** Null if the data set was deleted except for its tokenizer. */
async function datasetOf(folder: string): Promise<Dataset | null> {
  try {
    return await Dataset.open(folder, { verify: false });
  } catch (error) {
    if (error instanceof DataError) return null;
    throw error;
  }
}
