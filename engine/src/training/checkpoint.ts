import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { copyFile, link, mkdir, open, readdir, rm, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { isDeepStrictEqual } from 'node:util';
import { engineVersion } from '../engineVersion.js';
import type { Parameter, ParameterRole } from '../model/parameter.js';
import { checkpointsFolder, type StoredFile, type TrainingRun } from './trainingRun.js';
import { CheckpointNoSpace } from './checkpointErrors.js';
import {
  checkpointFormatVersion,
  type CheckpointFile,
  type CheckpointManifest,
} from './checkpointManifest.js';
import { digestFile, publish, syncFolder, writeNewFile, type FileDigest } from '../io/durableFile.js';
import { storedTypes } from '../io/halfFloats.js';
import { writeSafetensors, type TensorSource } from '../io/safetensors.js';
import { Staging } from './staging.js';
import { specHash } from '../plan/specHash.js';

/** Left free on the disk when a checkpoint is written, so that the journal can still record what happened. */
const checkpointReserveBytes = 64 * 1024 ** 2;

export interface SavedCheckpoint {
  /** Step at which a run resumes. */
  step: number;
  /** Folder, complete and synced. */
  path: string;
  sizeBytes: number;
  manifestSha256: string;
  seconds: number;
  /** If the job keeps the checkpoint of its lowest held-out loss: that evaluation, if there was one. */
  best?: { step: number; loss: number };
}

/**
 * Saves everything that a run needs to resume bit for bit, as one folder `step-<step>-<attempt>` that appears complete or not at all: files
 * are written and synced under a temporary name, the manifest last, then the folder is renamed. Safetensors files of float32, base weights
 * [in, out] as in memory. Nothing is ever overwritten: if this attempt already saved this step, or the run was resumed from it and has done
 * nothing since, that checkpoint is returned. Throws CheckpointNoSpace.
 */
export async function saveCheckpoint(
  run: TrainingRun,
  { reserveBytes = checkpointReserveBytes } = {},
): Promise<SavedCheckpoint> {
  const startedAt = performance.now();
  const { progress, frozen } = run;
  const step = progress.nextStep;
  const folder = checkpointsFolder(run.folder);
  const path = join(folder, `step-${String(step).padStart(8, '0')}-${run.attempt}`);
  const savedProgress = { ...progress, savedStep: step };
  const { lastSaved } = run;
  // A restart or an evaluation done since the resume has to be saved, or it would be reported again.
  if (lastSaved?.path === path || (lastSaved !== null && isDeepStrictEqual(run.savedProgress, savedProgress)))
    return lastSaved;

  await mkdir(folder, { recursive: true });
  await syncFolder(run.folder);
  await checkSpace(folder, bytesToWrite(run), reserveBytes);

  const temporary = join(folder, `.tmp-${run.attempt}-${step}-${randomBytes(4).toString('hex')}`);
  await mkdir(temporary);
  const staging = new Staging();
  try {
    const files: CheckpointManifest['files'] = {
      base: await storeFrozen(temporary, 'base', frozen.base, () => tensorsOf(run, ['base'], staging)),
      shared: await storeSources(temporary, 'shared', tensorsOf(run, ['shared'], staging)),
      moments: await storeSources(temporary, 'moments', [...run.optimizer.state(staging)]),
    };
    if (run.model.adapterSettings !== null) {
      files.adapters = await storeSources(
        temporary,
        'adapters',
        tensorsOf(run, ['adapterA', 'adapterB', 'adapterScale'], staging),
      );
    }
    if (frozen.start !== null) files.start = await storeFrozen(temporary, 'start', frozen.start, null);

    const manifest = await writeNewFile(
      join(temporary, 'manifest.json'),
      manifestText(run, savedProgress, files),
    );
    await syncFolder(temporary);
    await publish(temporary, path);

    progress.savedStep = step;
    run.savedProgress = savedProgress;
    // Only the newest checkpoint is certain to be kept, so the next one links its files.
    if (run.model.adapterSettings !== null) frozen.base = stored(path, files.base);
    if (files.start !== undefined) frozen.start = stored(path, files.start);
    const sizeBytes = Object.values(files).reduce((sum, file) => sum + file.sizeBytes, manifest.sizeBytes);
    const seconds = (performance.now() - startedAt) / 1000;
    const { best } = savedProgress.heldOut;
    const kept = run.spec.checkpoint.keepBest && best !== null ? { best } : {};
    run.lastSaved = { step, path, sizeBytes, manifestSha256: manifest.sha256, seconds, ...kept };
    return run.lastSaved;
  } catch (error) {
    // A failed sync is not retried: the kernel may have marked its pages clean. The whole folder is deleted; the next attempt writes a new
    // one.
    await rm(temporary, { recursive: true, force: true });
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC') {
      throw new CheckpointNoSpace(folder, bytesToWrite(run), await freeBytes(folder), { cause: error });
    }
    throw error;
  }
}

/** Writes the base weights at the start of the adapter phase to `<run>/start/base.safetensors`. */
export async function writeStartWeights(run: TrainingRun): Promise<StoredFile> {
  const folder = join(run.folder, 'start');
  await mkdir(folder, { recursive: true });
  await syncFolder(run.folder);
  for (const name of await readdir(folder)) {
    if (name.startsWith('.tmp-')) await rm(join(folder, name), { recursive: true, force: true }); // left by a killed attempt
  }
  const temporary = join(folder, `.tmp-${run.attempt}-${randomBytes(4).toString('hex')}`);
  await mkdir(temporary);
  try {
    const digest = await storeSources(temporary, 'base', tensorsOf(run, ['base'], new Staging()));
    const path = join(folder, digest.fileName);
    // This may replace the file of an earlier attempt: it has the same weights, and checkpoints that link the old file keep it.
    await publish(join(temporary, digest.fileName), path);
    return { ...digest, path };
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

function manifestText(
  run: TrainingRun,
  progress: TrainingRun['progress'],
  files: CheckpointManifest['files'],
): string {
  const { spec, device, schedule, model, optimizer } = run;
  const { name, instructionSet, precision, basePrecision, model: cpuModel, libraries } = device.description;
  const manifest: CheckpointManifest = {
    formatVersion: checkpointFormatVersion,
    engineVersion,
    specSha256: specHash(spec, run.baseWeightsSha256),
    datasetSha256: run.data.sha256,
    baseWeightsSha256: run.baseWeightsSha256,
    ...(Object.keys(run.modelFiles).length === 0 ? {} : { modelFiles: run.modelFiles }),
    model: model.config,
    adapter: model.adapterSettings,
    graphs: run.graphs,
    phase: schedule.phaseAt(progress.nextStep),
    progress,
    // Generators have no other state: every stream is a function of the seed and its name.
    position: { seed: spec.seed, firstSequence: progress.nextStep * spec.batch.sequenceCount },
    doneMs: { ...run.steering.doneMs, checkpoint: Date.now() },
    optimizerStepCounts: optimizer.stepCounts,
    ...(run.collective.size > 1 && { replicas: run.collective.size }),
    backend: {
      ...{ name, instructionSet, precision, basePrecision, cpuModel },
      ...(name === 'cuda' && { libraries }),
    },
    files,
  };
  return `${JSON.stringify(manifest, null, 2)}\n`;
}

function tensorsOf(
  { model, device }: TrainingRun,
  roles: readonly ParameterRole[],
  staging: Staging,
): TensorSource[] {
  return [...model.parameters.values()]
    .filter(({ role }) => roles.includes(role))
    .map((parameter: Parameter) => ({
      name: parameter.name,
      shape: [...parameter.shape],
      dtype: 'F32',
      read: () => staging.read(device, parameter.buffer),
    }));
}

async function storeSources(
  folder: string,
  file: CheckpointFile,
  sources: readonly TensorSource[],
): Promise<FileDigest> {
  const fileName = `${file}.safetensors`;
  return { ...(await writeSafetensors(join(folder, fileName), sources)), fileName };
}

/**
 * Links weights that have not changed since they were stored: a fraction of the bytes to write, and every checkpoint is still a complete
 * folder. If links are not possible the file is copied; if the file is gone, the weights are written again, as long as the model still has
 * them.
 */
async function storeFrozen(
  folder: string,
  file: CheckpointFile,
  source: StoredFile | null,
  tensors: (() => TensorSource[]) | null,
): Promise<FileDigest> {
  const fileName = `${file}.safetensors`;
  if (source !== null) {
    try {
      await linkOrCopy(source, join(folder, fileName));
      return { fileName, sizeBytes: source.sizeBytes, sha256: source.sha256 };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || tensors === null) throw error;
    }
  }
  return storeSources(folder, file, tensors!());
}

async function linkOrCopy(source: StoredFile, target: string): Promise<void> {
  try {
    await link(source.path, target);
  } catch (error) {
    if (!['EXDEV', 'EPERM', 'EMLINK', 'ENOTSUP'].includes((error as NodeJS.ErrnoException).code ?? ''))
      throw error;
    await copyFile(source.path, target, constants.COPYFILE_EXCL);
    const copy = await open(target, 'r+');
    await copy.sync().finally(() => copy.close());
    const { sha256 } = await digestFile(target);
    if (sha256 !== source.sha256)
      throw new Error(`${source.path} changed after it was written`, { cause: error });
  }
}

function stored(folder: string, digest: FileDigest): StoredFile {
  return { ...digest, path: join(folder, digest.fileName) };
}

function bytesToWrite(run: TrainingRun): number {
  let bytes = 0;
  for (const { role, buffer } of run.model.parameters.values()) {
    if (role !== 'base' || run.frozen.base === null) bytes += 4 * buffer.length;
  }
  for (const { shape, dtype } of run.optimizer.state())
    bytes += shape.reduce((size, dimension) => size * dimension, 1) * storedTypes[dtype];
  return bytes;
}

async function checkSpace(folder: string, sizeBytes: number, reserveBytes: number): Promise<void> {
  const needed = 2 * sizeBytes + reserveBytes;
  const free = await freeBytes(folder);
  if (free < needed) throw new CheckpointNoSpace(folder, needed, free);
}

async function freeBytes(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
}
