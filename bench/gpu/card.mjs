import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findLibraries, openCuda } from '../../engine/dist/device/cuda/index.js';

const cudaFolder = fileURLToPath(new URL('../../engine/cuda/', import.meta.url));
const workFolder = fileURLToPath(new URL('../../.relora/', import.meta.url));

/**
 * Options for `openCuda`; with `isModel` for the software model of a card, whose compiler is g++ and which is a hundred times slower.
 * @param {{ isModel: boolean, ordinal: number, libraryFolder: string | null }} options
 */
export function cardOptions({ isModel, ordinal, libraryFolder }) {
  if (isModel) return modelOptions();
  return {
    libraries: findLibraries({ folder: libraryFolder }),
    ordinal,
    cache: { folder: join(workFolder, 'gpu-kernels'), isWritable: true },
  };
}

/** `precision`: float32, bfloat16, or fp8 for bfloat16 with frozen bases in e4m3. */
export const openCard = (options, precision) =>
  precision === 'fp8'
    ? openCuda({ ...options, precision: 'bfloat16', basePrecision: 'fp8' })
    : openCuda({ ...options, precision });

/**
 * Settings of a server that finds this card.
 * @param {{ isModel: boolean, libraryFolder: string | null, folder: string }} options `folder`: for files of this run
 */
export function serverSettings(options) {
  const { libraryFolder } = options;
  const { libraries, cache, moreOptions } = cardOptions(options);
  if (!options.isModel)
    return {
      RELORA_KERNEL_CACHE_FOLDER: cache.folder,
      ...(libraryFolder !== null && { RELORA_CUDA_FOLDER: libraryFolder }),
    };
  // A server knows no model: for it there is a folder with NVIDIA's names, and a cache for this model alone.
  const named = mkdtempSync(join(options.folder, 'libraries-'));
  for (const name of ['libcuda.so.1', 'libnvrtc.so.13', 'libcublasLt.so.13'])
    symlinkSync(libraries.driver, join(named, name));
  const kernels = join(cache.folder, moreOptions[0].replace('--model=', 'servers-'));
  mkdirSync(kernels, { recursive: true });
  return {
    RELORA_CUDA_FOLDER: named,
    RELORA_KERNEL_CACHE_FOLDER: kernels,
    RELORA_TRAINER_SILENCE_SECONDS: '600', // a step of the model may take longer than the default on a busy machine
    RELORA_TRAINER_NICE: '0',
    CUDA_MODEL_MEMORY_BYTES: String(2 ** 33), // a server keeps part of a card for drivers
  };
}

function modelOptions() {
  process.env.CUDA_MODEL_MEMORY_BYTES ??= String(2 ** 28);
  for (const part of ['host', 'model']) execFileSync(process.execPath, [join(cudaFolder, 'build.mjs'), part]);
  const path = join(cudaFolder, 'build', 'model', 'cuda_model.node');
  // Its compiler's output is cached as long as the model does not change.
  const identity = createHash('sha256').update(readFileSync(path));
  for (const header of ['device.h', 'runtime.h'])
    identity.update(readFileSync(join(cudaFolder, 'model', header)));
  return {
    libraries: { driver: path, compilers: [path], products: [path], collectives: [] },
    ordinal: 0,
    cache: { folder: join(cudaFolder, 'build', 'model', 'kernels'), isWritable: true },
    moreOptions: [`--model=${identity.digest('hex').slice(0, 16)}`],
  };
}
