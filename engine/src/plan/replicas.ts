import type { RunSpec } from './runSpec.js';

type Replicas = Pick<RunSpec, 'replicas' | 'replicasMin' | 'batch'>;

/** The fewest free slots with which a run may begin or resume. */
export function replicasNeeded({ replicas, replicasMin }: Replicas, isResumed: boolean): number {
  return isResumed && replicasMin > 0 ? replicasMin : replicas;
}

/** How many of the free slots a run uses: as many as it asks for, or the most that divide its batch. */
export function replicasWithin({ replicas, batch: { sequenceCount } }: Replicas, free: number): number {
  let count = Math.min(replicas, free);
  while (count > 1 && sequenceCount % count !== 0) count--;
  return count;
}

/** Slot of the memory that processes share: small enough that sums are computed in the processor's cache. */
const slotBytes = 2 ** 20;
const headerBytes = 2 ** 16;

/** Length of the file that this many processes of a machine share, initially all zeros (engine/native/exchange). */
export function sharedMemoryBytes(size: number): number {
  return headerBytes + 2 * size * slotBytes;
}
