import { join } from 'node:path';
import { expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  exportModel,
  runWeights,
  saveCheckpoint,
  selectBackend,
  type BeginRunOptions,
  type TrainingRun,
} from '@relora/engine';
import { licenceDataset, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenceDataset(newFolder);

async function begin(options: Partial<BeginRunOptions> = {}): Promise<TrainingRun> {
  const spec = options.spec ?? tinySpec();
  const backend = await selectBackend({ device: spec.device, precision: spec.precision, threads: 2 });
  return beginRun({
    spec,
    backend,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

/** The hash of a run that begins with weights written as a type. */
async function hashFrom(run: TrainingRun, weightType: 'float32' | 'float16'): Promise<string | null> {
  const folder = join(newFolder(), 'model');
  await exportModel(await runWeights(run), folder, {
    format: 'huggingFace',
    weightType,
    shardBytesMax: 2 ** 30,
    job: null,
  });
  const spec = tinySpec({ baseWeightsFolder: folder });
  const from = await begin({ spec });
  const { path } = await saveCheckpoint(from);
  const resumed = await begin({ spec, runFolder: from.folder, checkpointPath: path, attempt: 2 });
  expect(resumed.baseWeightsSha256).toBe(from.baseWeightsSha256);
  disposeRun(from);
  disposeRun(resumed);
  return from.baseWeightsSha256;
}

it('a run knows which weights it began with, whatever file held them, and so does one that goes on', async () => {
  const run = await begin();
  expect(run.baseWeightsSha256).toBeNull(); // new weights: the seed gives them
  const hash = await hashFrom(run, 'float32');
  expect(hash).toMatch(/^[0-9a-f]{64}$/);
  expect(await hashFrom(run, 'float32')).toBe(hash);
  const rounded = await hashFrom(run, 'float16');
  expect(rounded).not.toBe(hash);
  disposeRun(run);
});
