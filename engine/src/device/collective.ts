import type { DeviceBuffer } from './device.js';

/**
 * What the members of a run exchange, held by the run beside its device. Everything that is summed or decided in common goes
 * through it, so that a run of several members takes the same branches in all of them. Sums are made in the order of the ranks.
 */
export interface Collective {
  /** Which member this is, from 0. */
  readonly rank: number;
  readonly size: number;
  /** Each buffer becomes its sum over all members. Float32, in place. */
  sum(buffers: readonly DeviceBuffer[]): Promise<void>;
  /** Whether the flag is set in any member. */
  any(flag: boolean): Promise<boolean>;
  /** Each buffer becomes that of member 0. In place. */
  broadcast(buffers: readonly DeviceBuffer[]): Promise<void>;
}

/** A run alone. */
export const alone: Collective = {
  rank: 0,
  size: 1,
  sum: () => Promise.resolve(),
  any: (flag) => Promise.resolve(flag),
  broadcast: () => Promise.resolve(),
};
