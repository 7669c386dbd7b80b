import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
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
