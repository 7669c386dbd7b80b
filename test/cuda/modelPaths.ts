import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const cudaFolder = fileURLToPath(new URL('../../engine/cuda/', import.meta.url));

/** Set by `npm run test:sanitize`: everything, the kernels too, is watched by the address sanitizer then. */
export const sanitizer = process.env.RELORA_SANITIZER === 'address' ? 'address' : '';

function build(part: 'host' | 'model', file: string): string {
  const more = sanitizer === '' ? [] : [sanitizer];
  execFileSync(process.execPath, [join(cudaFolder, 'build.mjs'), part, ...more]);
  return join(cudaFolder, 'build', part, sanitizer, file);
}

/** The addon, and the model that stands for the libraries that it opens. */
export const hostPath = build('host', 'relora_cuda.node');
export const modelPath = build('model', 'cuda_model.node');

/** The model's compiler is the model: what it makes is kept as long as it stays the same. */
const identity = createHash('sha256').update(readFileSync(modelPath));
for (const header of ['device.h', 'runtime.h'])
  identity.update(readFileSync(join(cudaFolder, 'model', header)));
export const modelIdentity = `--model=${identity.digest('hex').slice(0, 16)}`;

export const kernelCache = { folder: join(cudaFolder, 'build', 'model', 'kernels'), isWritable: true };

/** How `openCuda` opens the device `cuda` on the model. */
export const modelOptions = {
  libraries: { driver: modelPath, compilers: [modelPath], products: [modelPath] },
  ordinal: 0,
  cache: kernelCache,
  addonPath: hostPath,
  isApart: true,
  moreOptions: [modelIdentity],
};
