import { exportModel, withCheckpointWeights } from '@relora/engine';
import { openTokenizer } from '@relora/engine/data';
import type { ExportResult } from '../../artifacts/artifact.js';
import type { ExportTask } from '../messages.js';
import { deviceFor } from './device.js';

/** Writes the weights of a checkpoint into a new folder, one tensor in memory at a time. */
export async function exportWeights(task: ExportTask): Promise<ExportResult> {
  const device = await deviceFor(task.device, 'float32');
  const tokenizer = await openTokenizer(task.datasetFolder);
  const { path, manifestSha256 } = task.checkpoint;
  return await withCheckpointWeights(device, path, tokenizer, { manifestSha256 }, async (source) => {
    const { files, castErrorMax } = await exportModel(source, task.outputFolder, task);
    const digests = files.map(({ fileName, sizeBytes, sha256 }) => ({ fileName, sizeBytes, sha256 }));
    return { files: digests, castErrorMax, cycle: source.lineage.cycle };
  });
}
