import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import type { DeviceChoice } from '@relora/engine/plan';
import type { Config } from '../config.js';
import type { DeviceSettings } from './messages.js';

/** What a child computes on, according to the settings. `share`: the number of processes that share the processors. */
export function childDevice(
  { instructionSet, threads, cudaFolder, kernelCacheFolder, dataFolder }: Config,
  device: DeviceChoice,
  { share = 1, uuid = null }: { share?: number; uuid?: string | null } = {},
): DeviceSettings {
  return {
    device,
    instructionSet,
    threads: threads > 0 ? threads : Math.max(1, Math.floor(availableParallelism() / share)),
    card: {
      uuid,
      libraryFolder: cudaFolder,
      cacheFolder: kernelCacheFolder ?? join(dataFolder, 'kernels'),
    },
  };
}

/** Whether the computation never uses a card. */
export function isOnProcessors(device: DeviceChoice): boolean {
  return device !== 'auto' && device !== 'cuda';
}
