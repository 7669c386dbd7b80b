import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const cudaFolder = fileURLToPath(new URL('../../engine/cuda/', import.meta.url));

/** Set by `npm run test:sanitize`: then everything, including kernels, runs under AddressSanitizer. */
export const sanitizer = process.env.TEST_SANITIZER === 'address' ? 'address' : '';

function build(part: 'host' | 'model', file: string): string {
  const more = sanitizer === '' ? [] : [sanitizer];
  execFileSync(process.execPath, [join(cudaFolder, 'build.mjs'), part, ...more]);
  return join(cudaFolder, 'build', part, sanitizer, file);
}

/** The addon, and the model that replaces the libraries that it opens. */
export const hostPath = build('host', 'relora_cuda.node');
export const modelPath = build('model', 'cuda_model.node');

/** Identifies the model's compiler, which is the model itself: compiled kernels are cached as long as it does not change. */
const identity = createHash('sha256').update(readFileSync(modelPath));
for (const header of ['device.h', 'runtime.h'])
  identity.update(readFileSync(join(cudaFolder, 'model', header)));
export const modelIdentity = `--model=${identity.digest('hex').slice(0, 16)}`;

export const kernelCache = { folder: join(cudaFolder, 'build', 'model', 'kernels'), isWritable: true };

/** Options of `openCuda` for the model. */
export const modelOptions = {
  libraries: { driver: modelPath, compilers: [modelPath], products: [modelPath], collectives: [modelPath] },
  ordinal: 0,
  cache: kernelCache,
  addonPath: hostPath,
  isApart: true,
  moreOptions: [modelIdentity],
};
