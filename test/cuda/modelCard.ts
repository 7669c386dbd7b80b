import { createRequire } from 'node:module';
import { loadCudaAddon } from '../../engine/dist/device/cuda/cudaAddon.js';
import { kernelCompiler } from '../../engine/dist/device/cuda/kernelCompiler.js';
import { Kernels } from '../../engine/dist/device/cuda/kernels.js';
import { parseKernelText, readKernelFile } from '../../engine/dist/device/cuda/kernelText.js';
import { hostPath, kernelCache, modelIdentity, modelPath } from './modelPaths.js';

export { sanitizer } from './modelPaths.js';

/** Functions of the library that emulates a card's libraries, beyond theirs. */
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
    heldSeconds?: number;
  }): void;
}

export const model = createRequire(import.meta.url)(modelPath) as Model;

/**
 * Opens the model of a card. `checked`: every access of a kernel is checked in shadow memory, which is slow. `texts`: kernel sources of the
 * test, instead of the files.
 */
export function openModelCard({
  checked = false,
  texts = {} as Readonly<Record<string, string>>,
}: { checked?: boolean; texts?: Readonly<Record<string, string>> } = {}) {
  const addon = loadCudaAddon(hostPath);
  if (checked) model.watchWrites();
  addon.openDriver(modelPath);
  const opened = addon.openCard(0);
  const compiler = kernelCompiler(addon, modelPath, kernelCache);
  const target = {
    architecture: 'sm_90a',
    moreOptions: [modelIdentity, ...(checked ? ['--checked'] : [])],
  };
  const kernels = new Kernels(opened, compiler, target, (file) =>
    texts[file] === undefined ? readKernelFile(file) : parseKernelText(file, texts[file]),
  );
  return { ...opened, addon, model, kernels };
}

export type ModelCard = ReturnType<typeof openModelCard>;

/** The orders of threads on which results must not depend. */
export const schedules = [
  { order: 'forward', seed: 0 },
  { order: 'backward', seed: 0 },
  { order: 'seeded', seed: 1 },
  { order: 'seeded', seed: 2 },
] as const;
