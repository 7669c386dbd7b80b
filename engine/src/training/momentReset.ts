/**
 * How the moments of one weight are reset at a restart. An entry keeps or loses both of its moments. Differs from the
 * authors' code, which prunes each tensor by itself (docs/relora.md): a first moment that outlives its second is divided by
 * epsilon at the next update, and since B = 0 gives A no gradient at first, nothing fills the second one up in time.
 */
export interface EntryMoments {
  first: Float32Array;
  second: Float32Array;
}

/** Sets all entries to zero: exact zeros, not the 99.9 % of the authors' code (differs: docs/relora.md §Restart). */
export function zeroAll({ first, second }: EntryMoments): void {
  first.fill(0);
  second.fill(0);
}

/** Keeps each entry with probability 1 - ratio; `uniform` gives numbers in [0, 1). */
export function pruneAtRandom({ first, second }: EntryMoments, ratio: number, uniform: () => number): void {
  for (let i = 0; i < first.length; i++) {
    if (uniform() < ratio) first[i] = second[i] = 0;
  }
}

/**
 * Sets round(ratio · length) entries to zero, those whose first moment, the direction, is smallest by absolute value. A
 * threshold alone would drop too few or too many where values are equal, so among equals the first ones go until the
 * count is reached.
 */
export function pruneByMagnitude({ first, second }: EntryMoments, ratio: number): void {
  const dropCount = Math.round(ratio * first.length);
  if (dropCount === 0) return;
  const magnitudes = first.map(Math.abs).sort();
  const threshold = magnitudes[dropCount - 1]!;
  let equalsToDrop = dropCount;
  for (const magnitude of magnitudes) {
    if (magnitude >= threshold) break;
    equalsToDrop--;
  }
  for (let i = 0; i < first.length; i++) {
    const magnitude = Math.abs(first[i]!);
    if (magnitude > threshold || (magnitude === threshold && equalsToDrop-- <= 0)) continue;
    first[i] = second[i] = 0;
  }
}

/** How many entries are exactly zero. */
export function countZeros(moments: Float32Array): number {
  let zeros = 0;
  for (const value of moments) {
    if (value === 0) zeros++;
  }
  return zeros;
}
