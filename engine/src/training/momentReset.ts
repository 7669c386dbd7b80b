/** Sets all entries to zero: exact zeros, not the 99.9 % of the authors' code (differs: docs/relora.md §Restart). */
export function zeroAll(moments: Float32Array): void {
  moments.fill(0);
}

/** Keeps each entry with probability 1 - ratio; `uniform` gives numbers in [0, 1). */
export function pruneAtRandom(moments: Float32Array, ratio: number, uniform: () => number): void {
  for (let i = 0; i < moments.length; i++) {
    if (uniform() < ratio) moments[i] = 0;
  }
}

/**
 * Sets round(ratio · length) entries to zero, those smallest by absolute value. A threshold alone would drop too few or
 * too many where values are equal, so among equals the first ones go until the count is reached.
 */
export function pruneByMagnitude(moments: Float32Array, ratio: number): void {
  const dropCount = Math.round(ratio * moments.length);
  if (dropCount === 0) return;
  const magnitudes = moments.map(Math.abs).sort();
  const threshold = magnitudes[dropCount - 1]!;
  let equalsToDrop = dropCount;
  for (const magnitude of magnitudes) {
    if (magnitude >= threshold) break;
    equalsToDrop--;
  }
  for (let i = 0; i < moments.length; i++) {
    const magnitude = Math.abs(moments[i]!);
    if (magnitude < threshold) moments[i] = 0;
    else if (magnitude === threshold && equalsToDrop > 0) {
      moments[i] = 0;
      equalsToDrop--;
    }
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
