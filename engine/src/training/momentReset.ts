/**
 * How the moments of one weight are reset at a restart. An entry keeps or loses both of its moments. This differs from the authors' code,
 * which prunes each tensor independently (docs/relora.md): a first moment that outlives its second is divided by epsilon at the next
 * update, and since B = 0 gives A no gradient at first, the second one does not grow in time.
 */
export interface EntryMoments {
  first: Float32Array;
  second: Float32Array;
}

/** Sets all entries to exactly zero, unlike the 99.9 % of the authors' code (differs: docs/relora.md §Restart). */
export function zeroAll({ first, second }: EntryMoments): void {
  first.fill(0);
  second.fill(0);
}

/** Keeps each entry with probability 1 - ratio; `uniform` returns numbers in [0, 1). */
export function pruneAtRandom({ first, second }: EntryMoments, ratio: number, uniform: () => number): void {
  for (let i = 0; i < first.length; i++) {
    if (uniform() < ratio) first[i] = second[i] = 0;
  }
}

/**
 * Sets round(ratio · length) entries to zero: those whose first moment (the direction) has the smallest absolute value. A simple threshold
 * would zero too few or too many entries if values are equal, so among equal ones the first are zeroed until the count is reached.
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
