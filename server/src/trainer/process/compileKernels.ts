import { fillKernelCache } from '@relora/engine/cuda';
import type { CompileTask } from '../messages.js';

/** Compiles every kernel that a run may load for the cards of this machine, so that trainers only read them. */
export async function compileKernels({ device: { card } }: CompileTask): Promise<null> {
  await fillKernelCache({ libraryFolder: card.libraryFolder, folder: card.cacheFolder });
  return null;
}
