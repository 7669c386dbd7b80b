import type { ReductionType } from '../plan/words.js';
import type { DeviceBuffer } from './device.js';

/**
 * What the members of a run exchange, held by the run beside its device. Everything that is summed or decided in common goes
 * through it, so that a run of several members takes the same branches in all of them: each makes the same calls in the same order.
 * Sums are made in the order of the ranks. Throws MemberLost where another has left.
 */
export interface Collective {
  /** Which member this is, from 0. Member 0 alone saves, evaluates, samples and reports. */
  readonly rank: number;
  readonly size: number;
  /** Each buffer becomes its sum over all members, in place; what travels has that type. */
  sum(buffers: readonly DeviceBuffer[], type: ReductionType): Promise<void>;
  /** Each buffer becomes its mean over all members, in place, in float32. */
  mean(buffers: readonly DeviceBuffer[]): Promise<void>;
  /** The sum of values on the host, in float32. */
  sumValues(values: Float32Array): Promise<void>;
  /** Each number summed over all members, in float64. */
  sumNumbers(values: readonly number[]): Promise<number[]>;
  /** Whether the flag is set in any member. */
  any(flag: boolean): Promise<boolean>;
  /** What member 0 gives, in all of them; it has to be JSON. */
  broadcast<T>(value: T): Promise<T>;
  /** Bytes of the sums so far: what a member gives to the others. */
  readonly summedBytes: number;
  /** This member comes no more. `isOver`: the run is, for all of them; by default others may wait for it. */
  leave(isOver?: boolean): void;
}

/** A run alone. */
export const alone: Collective = {
  rank: 0,
  size: 1,
  summedBytes: 0,
  sum: () => Promise.resolve(),
  mean: () => Promise.resolve(),
  sumValues: () => Promise.resolve(),
  sumNumbers: (values) => Promise.resolve([...values]),
  any: (flag) => Promise.resolve(flag),
  broadcast: (value) => Promise.resolve(value),
  leave: () => {},
};
