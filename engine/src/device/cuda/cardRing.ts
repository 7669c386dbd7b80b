import type { DeviceBuffer, DirectSums } from '../device.js';
import { DeviceFault } from '../deviceFaults.js';
import { orLost } from '../exchange.js';
import type { CardMemory } from './cardMemory.js';
import { guarded } from './cardFaults.js';
import { loadCudaAddon, type Card, type CudaAddon } from './cudaAddon.js';
import { findLibraries } from './libraries.js';

/** Sums over the cards of all members by NCCL, from memory to memory. */
export class CardRing implements DirectSums {
  readonly library: string;
  readonly idBytes = 128;

  /** `libraries`: the record of the device, which names NCCL from the join on. */
  constructor(
    private readonly memory: CardMemory,
    private readonly addon: Pick<CudaAddon, 'newRingId'>,
    private readonly version: string,
    private readonly libraries: Record<string, string>,
  ) {
    this.library = `nccl ${version}`;
  }

  async newId(): Promise<Uint8Array> {
    return await orLost(Promise.resolve().then(() => this.addon.newRingId()));
  }

  async join(id: Uint8Array, rank: number, size: number): Promise<void> {
    let isPending = true;
    // An exiting process waits for the thread of a pending call. Leaving ends a sum, but nothing ends a join for which others are missing.
    process.once('exit', () => {
      if (isPending) process.kill(process.pid, 'SIGKILL');
      this.leave();
    });
    try {
      await faultOrLost(this.card.joinRing(id, rank, size));
    } finally {
      isPending = false;
    }
    this.libraries.nccl = this.version;
  }

  async sum(buffer: DeviceBuffer): Promise<void> {
    const address = this.memory.floats(buffer, buffer.length, 'sum');
    if (buffer.length > 0) await faultOrLost(this.card.sumRing(address, buffer.length));
    this.memory.written(buffer);
  }

  leave(): void {
    this.card.leaveRing();
  }

  private get card(): Card {
    return this.memory.card;
  }
}

/** A fault of the own card, as far as the call reports one, is the cause of what it does to the others. */
async function faultOrLost<T>(call: Promise<T>): Promise<T> {
  return await orLost(call).catch((error: unknown) => {
    throw error instanceof Error && error.cause instanceof DeviceFault ? error.cause : error;
  });
}

/** The version of the NCCL that runs in this folder, or in the usual places if it is null, would use; null if there is none. */
export function findNccl(folder: string | null): string | null {
  return openNccl(guarded(loadCudaAddon()), findLibraries({ folder }).collectives);
}

/** Opens the first library of NCCL that can be opened, and returns its version; null if there is none. */
export function openNccl(addon: Pick<CudaAddon, 'openNccl'>, paths: readonly string[]): string | null {
  for (const path of paths) {
    try {
      return nameOf(addon.openNccl(path));
    } catch (error) {
      if (!(error instanceof DeviceFault) || error.reason !== 'DEVICE_LIBRARY_MISSING') throw error;
    }
  }
  return null;
}

/** Since 2.9 a version has two digits for the minor number. */
function nameOf(version: number): string {
  const [major, rest] = version < 10_000 ? [1000, version % 1000] : [10_000, version % 10_000];
  return [Math.floor(version / major), Math.floor(rest / 100), version % 100].join('.');
}
