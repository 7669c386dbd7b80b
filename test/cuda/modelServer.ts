import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { kernelCache, modelIdentity, modelPath, sanitizer } from './modelPaths.js';

/** A folder with the names of NVIDIA's libraries, all of which are the model of a card; only the given names exist. */
export function libraryFolder(names = ['libcuda.so.1', 'libnvrtc.so.13', 'libcublasLt.so.13']): string {
  const folder = mkdtempSync(join(tmpdir(), 'relora-libraries-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  for (const name of names) symlinkSync(modelPath, join(folder, name));
  return folder;
}

/** Compiled kernels of this model, shared by all servers on it: g++ takes seconds per file. */
const cacheFolder = join(kernelCache.folder, modelIdentity.replace('--model=', 'servers-'));

/** Settings of a server whose card is the model. */
export function modelSettings(folder = libraryFolder()): Record<string, string> {
  mkdirSync(cacheFolder, { recursive: true });
  return {
    RELORA_CUDA_FOLDER: folder,
    RELORA_KERNEL_CACHE_FOLDER: cacheFolder,
    RELORA_DEVICE: 'cuda',
    // The sanitizer's own memory and files are none that a trainer needs.
    ...(sanitizer !== '' && { RELORA_SANDBOX: 'off' }),
  };
}
