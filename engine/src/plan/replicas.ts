import type { RunSpec } from './runSpec.js';

type Replicas = Pick<RunSpec, 'replicas' | 'replicasMin' | 'batch'>;

/** The fewest slots with which a run may begin, or be resumed. */
export function replicasNeeded({ replicas, replicasMin }: Replicas, isResumed: boolean): number {
  return isResumed && replicasMin > 0 ? replicasMin : replicas;
}

/** How many processes a run takes of so many free slots: as many as it asks for, or the most that divide its batch. */
export function replicasWithin({ replicas, batch: { sequenceCount } }: Replicas, free: number): number {
  let count = Math.min(replicas, free);
  while (count > 1 && sequenceCount % count !== 0) count--;
  return count;
}

/** Of a slot of memory that processes share: in the processor's cache it is added without the way to memory and back. */
const slotBytes = 2 ** 20;
const headerBytes = 2 ** 16;

/** Length of the file that so many processes of a machine share, all of it zeros at first (engine/native/exchange). */
export function sharedMemoryBytes(size: number): number {
  return headerBytes + 2 * size * slotBytes;
}
