import type { Device } from '../device/device.js';
import { Bench } from './bench.js';
import type { Case } from './cases.js';

export interface CaseResult {
  /** Kernels that ran for the case. */
  ran: string[];
  /** Results that differ too much, with the difference relative to the largest value. Empty if all are correct. */
  wrong: { result: string; difference: number }[];
  /** The largest difference, and its limit. */
  worst: number;
  limit: number;
  /** Results whose bits changed when the case was run again, in buffers used by the first run. */
  changed: string[];
  /** Buffers that the two runs did not release. */
  lostCount: number;
}

/**
 * Runs a case on a device and compares everything that it wrote with the results of the definitions. `tolerance` is that of the device's
 * precision; an exact case has a smaller one.
 */
export async function checkCase(
  device: Device,
  one: Case,
  definitions: ReadonlyMap<string, Float32Array>,
  tolerance: number,
): Promise<CaseResult> {
  const before = new Map(device.kernelCounts());
  const { count } = device.memory();
  const found = await one.run(new Bench(device));
  const ran = [...device.kernelCounts()].filter(([name, calls]) => calls > (before.get(name) ?? 0));
  const limit = one.isExact ? Math.min(tolerance, 2e-5) : tolerance;
  // Its terms are about as large as those of the case's other sums, and not all of these cancel.
  const largestSum = Math.max(
    0,
    ...[...definitions.values()].map((sum) => (sum.length === 1 ? Math.abs(sum[0]!) : 0)),
  );
  const wrong: CaseResult['wrong'] = [];
  let worst = 0;
  for (const name of new Set([...found.keys(), ...definitions.keys()])) {
    const [values, wanted] = [found.get(name), definitions.get(name)];
    // A single number is a sum whose terms may cancel, so its value is no measure for the rounding of its terms.
    const isSum = values?.length === 1 && wanted?.length === 1;
    if (isSum && limit > 1e-3) continue;
    const difference =
      values && wanted ? largestDifference(values, wanted, isSum ? largestSum : 0) : Infinity;
    worst = Math.max(worst, difference);
    if (!(difference <= limit)) wrong.push({ result: name, difference });
  }
  const again = await one.run(new Bench(device));
  const changed = [...found]
    .filter(([name, values]) => !sameBits(values, again.get(name)))
    .map(([name]) => name);
  return {
    ran: ran.map(([name]) => name),
    ...{ wrong, worst, limit, changed },
    lostCount: device.memory().count - count,
  };
}

/** Relative to the largest value, or to `least` if that is larger; infinite if only one of two values is NaN. */
export function largestDifference(actual: ArrayLike<number>, wanted: ArrayLike<number>, least = 0): number {
  if (actual.length !== wanted.length) return Infinity;
  let largest = Math.max(1e-30, least);
  let worst = 0;
  for (let i = 0; i < wanted.length; i++) {
    if (Number.isNaN(actual[i]!) && Number.isNaN(wanted[i]!)) continue;
    largest = Math.max(largest, Math.abs(wanted[i]!));
    const difference = Math.abs(actual[i]! - wanted[i]!);
    worst = Math.max(worst, Number.isNaN(difference) ? Infinity : difference);
  }
  return worst / largest;
}

function sameBits(one: Float32Array, other: Float32Array | undefined): boolean {
  if (other?.length !== one.length) return false;
  const [bits, otherBits] = [one, other].map((of) => new Uint32Array(of.buffer, of.byteOffset, of.length));
  return bits!.every((word, i) => word === otherBits![i]);
}
