import { describe, expect, it } from 'vitest';
import { Random } from '../../engine/src/random.js';
import {
  countZeros,
  pruneAtRandom,
  pruneByMagnitude,
  zeroAll,
} from '../../engine/src/training/momentReset.js';

describe('forgetting moments', () => {
  it('zero leaves exact zeros', () => {
    const moments = Float32Array.of(1, -2, 1e-30);
    zeroAll(moments);
    expect([...moments]).toEqual([0, 0, 0]);
  });

  it('magnitude drops the smallest by absolute value, as many as the ratio says', () => {
    const moments = Float32Array.of(5, -1, 0.5, -7, 2, 3, -0.25, 8, 6, 4);
    pruneByMagnitude(moments, 0.7);
    expect([...moments]).toEqual([0, 0, 0, -7, 0, 0, 0, 8, 6, 0]);
  });

  it('magnitude drops the exact number also where values are equal', () => {
    const moments = new Float32Array(1000).fill(0.5);
    pruneByMagnitude(moments, 0.9);
    expect(countZeros(moments)).toBe(900);
    const mixed = Float32Array.of(1, -1, 1, 0.1, 1, 2);
    pruneByMagnitude(mixed, 0.5);
    expect([...mixed]).toEqual([0, 0, 1, 0, 1, 2]);
  });

  it('magnitude with ratio 0 and 1 keeps and drops all', () => {
    const moments = Float32Array.of(1, 2, 3);
    pruneByMagnitude(moments, 0);
    expect(countZeros(moments)).toBe(0);
    pruneByMagnitude(moments, 1);
    expect(countZeros(moments)).toBe(3);
  });

  it('random keeps each entry with the probability asked for, and the same ones for the same seed', () => {
    const prune = () => {
      const moments = new Float32Array(100_000).fill(1);
      const random = Random.forStream(7, 'moments', 1);
      pruneAtRandom(moments, 0.9, () => random.uniform());
      return moments;
    };
    const moments = prune();
    // Standard deviation of the count is sqrt(n p (1 - p)) = 95.
    expect(Math.abs(countZeros(moments) - 90_000)).toBeLessThan(5 * 95);
    expect(prune()).toEqual(moments);
  });
});
