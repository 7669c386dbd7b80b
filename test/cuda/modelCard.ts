import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { cudaFolder, loadCudaAddon } from '../../engine/dist/device/cuda/cudaAddon.js';
import { kernelCompiler } from '../../engine/dist/device/cuda/kernelCompiler.js';
import { Kernels } from '../../engine/dist/device/cuda/kernels.js';
import { parseKernelText, readKernelFile } from '../../engine/dist/device/cuda/kernelText.js';

/** What the library that stands for a card's offers beside it. */
interface Model {
  setSchedule(schedule: { order: 'forward' | 'backward' | 'seeded'; seed: number }): void;
  takeFaults(): string[];
  watchWrites(): void;
  setCard(card: {
    memoryBytes?: number;
    driverVersion?: number;
    capability?: number;
    loseAfterLaunches?: number;
    deviceCount?: number;
  }): void;
}

/** Set by `npm run test:sanitize`: everything, the kernels too, is watched by the address sanitizer then. */
export const sanitizer = process.env.RELORA_SANITIZER === 'address' ? 'address' : '';
const build = (part: 'host' | 'model') => {
  execFileSync(process.execPath, [
    join(cudaFolder, 'build.mjs'),
    part,
    ...(sanitizer === '' ? [] : [sanitizer]),
  ]);
  return join(cudaFolder, 'build', part, sanitizer, part === 'host' ? 'relora_cuda.node' : 'cuda_model.node');
};

export const hostPath = build('host');
export const modelPath = build('model');
const model = createRequire(import.meta.url)(modelPath) as Model;
const identity = createHash('sha256').update(readFileSync(modelPath));
for (const header of ['device.h', 'runtime.h'])
  identity.update(readFileSync(join(cudaFolder, 'model', header)));
/** The model's compiler is the model: what it makes is kept as long as it stays the same. */
const modelIdentity = `--model=${identity.digest('hex').slice(0, 16)}`;

/**
 * The model of a card, open. `checked`: every access of a kernel passes the shadow, slowly. `texts`: kernels of the test's own in
 * place of the files.
 */
export function openModelCard({
  checked = false,
  texts = {} as Readonly<Record<string, string>>,
}: { checked?: boolean; texts?: Readonly<Record<string, string>> } = {}) {
  const addon = loadCudaAddon(hostPath);
  if (checked) model.watchWrites();
  addon.openDriver(modelPath);
  addon.openDevice(0);
  const cache = { folder: join(cudaFolder, 'build', 'model', 'kernels'), isWritable: true };
  const compiler = kernelCompiler(addon, modelPath, cache);
  const target = {
    architecture: 'sm_90a',
    moreOptions: [modelIdentity, ...(checked ? ['--checked'] : [])],
  };
  const kernels = new Kernels(addon, compiler, target, (file) =>
    texts[file] === undefined ? readKernelFile(file) : parseKernelText(file, texts[file]),
  );
  return { addon, model, kernels };
}

export type ModelCard = ReturnType<typeof openModelCard>;

/** Every order of threads that results must not depend on. */
export const schedules = [
  { order: 'forward', seed: 0 },
  { order: 'backward', seed: 0 },
  { order: 'seeded', seed: 1 },
  { order: 'seeded', seed: 2 },
] as const;
