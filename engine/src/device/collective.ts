import type { ReductionType } from '../plan/words.js';
import type { DeviceBuffer } from './device.js';

/**
 * Communication between the members of a run, which holds it together with its device. All sums and common decisions go through it, so that
 * all members take the same branches: each makes the same calls in the same order. Sums are computed in the order of the ranks. Throws
 * MemberLost if another member has left.
 */
export interface Collective {
  /** Which member this is, from 0. Only member 0 saves, evaluates, samples and reports. */
  readonly rank: number;
  readonly size: number;
  /** Replaces each buffer by its sum over all members; values are exchanged in that type. */
  sum(buffers: readonly DeviceBuffer[], type: ReductionType): Promise<void>;
  /**
   * Like `sum` of one buffer, which `write` computes: if that is faster, its first values are exchanged while `write` still computes the
   * others, and `write` says how far it is. Otherwise `reach` is null, and everything is exchanged afterwards. The bits are the same, and
   * members need not do it in the same way. If `write` throws, this member must leave.
   */
  sumWritten(buffer: DeviceBuffer, type: ReductionType, write: (reach: Reach | null) => void): Promise<void>;
  /** Replaces each buffer by its mean over all members, in float32. */
  mean(buffers: readonly DeviceBuffer[]): Promise<void>;
  /** Replaces host values by their sum over all members, in float32. */
  sumValues(values: Float32Array): Promise<void>;
  /** Each number summed over all members, in float64. */
  sumNumbers(values: readonly number[]): Promise<number[]>;
  /** Whether the flag is set in at least one member. */
  any(flag: boolean): Promise<boolean>;
  /** Returns member 0's value in all members; it must be JSON. */
  broadcast<T>(value: T): Promise<T>;
  /** Bytes that this member has sent for sums so far. */
  readonly summedBytes: number;
  /** This member makes no further calls. `isOver`: the run has ended for all members; by default others may wait for it. */
  leave(isOver?: boolean): void;
}

/** The first `count` values of a buffer are final. */
export type Reach = (count: number) => void;

/** A run with a single member. */
export const alone: Collective = {
  rank: 0,
  size: 1,
  summedBytes: 0,
  sum: () => Promise.resolve(),
  sumWritten: (_buffer, _type, write) => Promise.resolve(write(null)),
  mean: () => Promise.resolve(),
  sumValues: () => Promise.resolve(),
  sumNumbers: (values) => Promise.resolve([...values]),
  any: (flag) => Promise.resolve(flag),
  broadcast: (value) => Promise.resolve(value),
  leave: () => {},
};
