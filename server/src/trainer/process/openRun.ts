import { join } from 'node:path';
import type { BeginRunOptions, Collective, Device } from '@relora/engine';
import { CheckedShards, Dataset } from '@relora/engine/data';
import { datasetNames, readDatasetNames } from '@relora/engine/plan';
import type { TrainOrder } from '../messages.js';

/** The data sets of a run. Lengths are checked now, hashes before each file's first use, once per job. */
export async function openDatasets({ datasetFolders, jobFolder }: TrainOrder): Promise<Dataset[]> {
  const checked = new CheckedShards(join(jobFolder, 'checked-held-out.json'));
  return await Promise.all(
    datasetFolders.map(async (folder) => await Dataset.open(folder, { verify: false, checked })),
  );
}

/** The options that are the same in every process of a run. */
export function runOptions(
  order: TrainOrder,
  device: Device,
  collective: Collective,
  datasets: readonly Dataset[],
): BeginRunOptions {
  const { spec, baseWeightsFolder, baseWeightsBefore, baseWeightsBeneath, jobFolder, attempt } = order;
  return {
    spec,
    baseWeightsFolder: baseWeightsFolder ?? undefined,
    baseWeightsBefore,
    baseWeightsBeneath,
    device,
    collective,
    dataset: datasets[0]!,
    mixture: datasets.slice(0, datasetNames(spec).length),
    scoredDatasets: new Map(readDatasetNames(spec).map((name, index) => [name, datasets[index]!])),
    runFolder: jobFolder,
    attempt,
    steering: {
      updates: order.updates,
      startMs: order.startTimeMs,
      deviceSeconds: order.deviceSeconds,
      stopStep: order.stopStep,
    },
  };
}
