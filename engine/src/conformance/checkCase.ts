import type { Device } from '../device/device.js';
import { Bench } from './bench.js';
import type { Case } from './cases.js';

export interface CaseResult {
  /** Kernels that ran for the case. */
  ran: string[];
  /** Of the results that differ too much: by how much, as a share of the largest value. Empty where all is well. */
  wrong: { result: string; difference: number }[];
  /** The largest difference among those that are compared, and what it may be. */
  worst: number;
  limit: number;
  /** Results whose bits were others when the case was run again, in buffers that the first run had used. */
  changed: string[];
  /** Buffers that the two runs have not given back. */
  lostCount: number;
}

/**
 * Runs a case on a device and compares everything that it wrote with what the definitions give. `tolerance`: of the device's
 * precision; a case that is exact has a smaller one.
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
  // Its terms are about as large as those of the other sums of the case, of which not all cancel.
  const largestSum = Math.max(
    0,
    ...[...definitions.values()].map((sum) => (sum.length === 1 ? Math.abs(sum[0]!) : 0)),
  );
  const wrong: CaseResult['wrong'] = [];
  let worst = 0;
  for (const name of new Set([...found.keys(), ...definitions.keys()])) {
    const [values, wanted] = [found.get(name), definitions.get(name)];
    // A single number is a sum of terms that cancel: rounding of its terms has no measure in the sum.
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

/** As a share of the largest value, or of `least` where that is larger; infinite where one is NaN and the other is not. */
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
