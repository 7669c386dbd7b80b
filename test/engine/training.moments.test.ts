import { describe, expect, it } from 'vitest';
import { Random } from '../../engine/dist/random.js';
import {
  countZeros,
  pruneAtRandom,
  pruneByMagnitude,
  zeroAll,
} from '../../engine/dist/training/momentReset.js';

/** Moments with the given first values; the second ones show which entry they belong to. */
function momentsOf(...first: number[]) {
  return { first: Float32Array.from(first), second: Float32Array.from(first, (_, index) => index + 1) };
}

describe('forgetting moments', () => {
  it('zero leaves exact zeros', () => {
    const moments = momentsOf(1, -2, 1e-30);
    zeroAll(moments);
    expect([...moments.first, ...moments.second]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('magnitude drops the entries of the smallest first moments, as many as the ratio says', () => {
    const moments = momentsOf(5, -1, 0.5, -7, 2, 3, -0.25, 8, 6, 4);
    pruneByMagnitude(moments, 0.7);
    expect([...moments.first]).toEqual([0, 0, 0, -7, 0, 0, 0, 8, 6, 0]);
    expect([...moments.second]).toEqual([0, 0, 0, 4, 0, 0, 0, 8, 9, 0]);
  });

  it('magnitude drops the exact number also where values are equal', () => {
    const moments = momentsOf(...new Array<number>(1000).fill(0.5));
    pruneByMagnitude(moments, 0.9);
    expect(countZeros(moments.first)).toBe(900);
    const mixed = momentsOf(1, -1, 1, 0.1, 1, 2);
    pruneByMagnitude(mixed, 0.5);
    expect([...mixed.first]).toEqual([0, 0, 1, 0, 1, 2]);
    expect([...mixed.second]).toEqual([0, 0, 3, 0, 5, 6]);
  });

  it('magnitude with ratio 0 and 1 keeps and drops all', () => {
    const moments = momentsOf(1, 2, 3);
    pruneByMagnitude(moments, 0);
    expect(countZeros(moments.first)).toBe(0);
    pruneByMagnitude(moments, 1);
    expect(countZeros(moments.first)).toBe(3);
  });

  it('random keeps each entry with the probability asked for, both moments of it or none, and the same ones for the same seed', () => {
    const prune = () => {
      const moments = momentsOf(...new Array<number>(100_000).fill(1));
      const random = Random.forStream(7, 'moments', 1);
      pruneAtRandom(moments, 0.9, () => random.uniform());
      return moments;
    };
    const { first, second } = prune();
    // Standard deviation of the count is sqrt(n p (1 - p)) = 95.
    expect(Math.abs(countZeros(first) - 90_000)).toBeLessThan(5 * 95);
    expect(second.every((value, index) => (value === 0) === (first[index] === 0))).toBe(true);
    expect(prune()).toEqual({ first, second });
  });
});
