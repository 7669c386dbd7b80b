import { join } from 'node:path';
import { expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  exportModel,
  runWeights,
  saveCheckpoint,
  openDevice,
  type BeginRunOptions,
  type RunSpec,
  type TrainingRun,
} from '@relora/engine';
import { specHash } from '../../engine/dist/plan/specHash.js';
import { licenseDataset, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

async function begin(options: Partial<BeginRunOptions> = {}): Promise<TrainingRun> {
  const spec = options.spec ?? tinySpec();
  const device = await openDevice({ device: spec.device, precision: spec.precision, threads: 2 });
  return beginRun({
    spec,
    device,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

/** Hashes of a run's weights and specification, for a start from weights stored in a given type. */
async function hashesFrom(
  run: TrainingRun,
  weightType: 'float32' | 'float16',
  changes: Partial<RunSpec> = {},
): Promise<{ weights: string | null; spec: string }> {
  const folder = join(newFolder(), 'model');
  await exportModel(await runWeights(run), folder, {
    format: 'huggingFace',
    weightType,
    shardBytesMax: 2 ** 30,
    job: null,
  });
  const spec = { ...tinySpec({ baseWeightsFolder: folder }), ...changes };
  const from = await begin({ spec });
  const { path } = await saveCheckpoint(from);
  const resumed = await begin({ spec, runFolder: from.folder, checkpointPath: path, attempt: 2 });
  expect(resumed.baseWeightsSha256).toBe(from.baseWeightsSha256);
  disposeRun(from);
  disposeRun(resumed);
  return { weights: from.baseWeightsSha256, spec: specHash(spec, from.baseWeightsSha256) };
}

it('a run knows which weights it began with, whatever file held them, and so does a resumed one', async () => {
  const run = await begin();
  expect(run.baseWeightsSha256).toBeNull(); // new weights: they follow from the seed
  const hashes = await hashesFrom(run, 'float32');
  expect(hashes.weights).toMatch(/^[0-9a-f]{64}$/);
  // Each time in another folder: the same weights make the same job.
  expect(await hashesFrom(run, 'float32')).toEqual(hashes);
  const rounded = await hashesFrom(run, 'float16');
  expect(rounded.weights).not.toBe(hashes.weights);
  expect(rounded.spec).not.toBe(hashes.spec);

  const byPath = { baseWeightsHash: 'path' } as const; // as in 0.1.0
  const [one, other] = [await hashesFrom(run, 'float32', byPath), await hashesFrom(run, 'float32', byPath)];
  expect(one.weights).toBe(other.weights);
  expect(one.spec).not.toBe(other.spec);
  disposeRun(run);
});

it('a run does not begin again at other weights than an earlier attempt of it began at', async () => {
  const run = await begin();
  const folder = join(newFolder(), 'model');
  const options = {
    format: 'huggingFace',
    weightType: 'float32',
    shardBytesMax: 2 ** 30,
    job: null,
  } as const;
  await exportModel(await runWeights(run), folder, options);
  disposeRun(run);
  const spec = tinySpec({ baseWeightsFolder: folder });
  const first = await begin({ spec });
  const { baseWeightsSha256: sha256 } = first;
  disposeRun(first);
  disposeRun(await begin({ spec, baseWeightsBefore: { files: [], sha256 } }));
  const before = { files: [], sha256: '0'.repeat(64) };
  await expect(begin({ spec, baseWeightsBefore: before })).rejects.toMatchObject({
    reason: 'BASE_WEIGHTS_CHANGED',
    message: `The base weights at ${folder} are not what they were: expected SHA-256 ${before.sha256}, found ${sha256}`,
  });
});
