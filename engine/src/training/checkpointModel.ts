import type { Device } from '../device/device.js';
import { plainPlan, type AdapterPlan } from '../model/adapterSet.js';
import { Llama } from '../model/llama.js';
import { assign } from '../model/parameter.js';
import type { MomentReader } from './moments.js';
import { CheckpointCorrupt } from './checkpointErrors.js';
import {
  checkpointFilePath,
  verifyCheckpoint,
  type CheckpointFile,
  type CheckpointManifest,
} from './checkpointManifest.js';
import { openSafetensors, type SafetensorsFile } from '../io/safetensors.js';

/** Restores the model of a verified checkpoint, with its adapters attached. */
export async function restoreModel(
  device: Device,
  path: string,
  manifest: CheckpointManifest,
  plan: AdapterPlan = plainPlan,
): Promise<Llama> {
  const model = await withFile(path, manifest, 'base', (base) =>
    withFile(path, manifest, 'shared', (shared) =>
      Llama.fromWeights(device, manifest.model, ({ name, role }) =>
        readTensor(path, role, role === 'base' ? base : shared, name),
      ),
    ),
  );
  try {
    const { adapter, position, progress } = manifest;
    if (adapter !== null) {
      model.attachAdapters(adapter, position.seed, progress.restartCount, plan);
      await withFile(path, manifest, 'adapters', async (file) => {
        for (const parameter of model.parameters.values()) {
          if (!parameter.role.startsWith('adapter')) continue;
          assign(device, parameter, await readTensor(path, 'adapters', file, parameter.name));
        }
      });
    }
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/**
 * Loads the model of a checkpoint for generation: its adapters are merged into the weights in memory and removed. The checkpoint is
 * verified first. The caller disposes the model.
 */
export async function loadModelFromCheckpoint(
  device: Device,
  path: string,
  expected: { manifestSha256?: string } = {},
): Promise<Llama> {
  const { manifest } = await verifyCheckpoint(path, expected);
  const model = await restoreModel(device, path, manifest);
  if (model.adapterSettings === null) return model;
  try {
    await model.mergeAdapters();
  } catch (error) {
    model.dispose();
    throw error;
  }
  model.detachAdapters();
  return model;
}

/** Calls `use` with a reader of the optimizer's moments; the reader returns null for a moment that the checkpoint does not have. */
export async function withMoments<T>(
  path: string,
  manifest: CheckpointManifest,
  use: (read: MomentReader) => Promise<T>,
): Promise<T> {
  return withFile(path, manifest, 'moments', (file) =>
    use(async (name) => (file.tensors.has(name) ? file.read(name) : null)),
  );
}

async function withFile<T>(
  path: string,
  manifest: CheckpointManifest,
  file: CheckpointFile,
  use: (opened: SafetensorsFile) => Promise<T>,
): Promise<T> {
  const digest = manifest.files[file];
  if (digest === undefined)
    throw new CheckpointCorrupt(path, 'manifest.json', `a manifest that names the file ${file}`, 'without');
  const opened = await openSafetensors(checkpointFilePath(path, digest));
  try {
    return await use(opened);
  } finally {
    await opened.close();
  }
}

async function readTensor(
  path: string,
  file: CheckpointFile,
  opened: SafetensorsFile,
  name: string,
): Promise<Float32Array> {
  if (!opened.tensors.has(name))
    throw new CheckpointCorrupt(path, `${file}.safetensors`, `a file with the tensor ${name}`, 'without');
  return opened.readFloat32(name);
}
