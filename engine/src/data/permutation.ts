import { Random } from '../random.js';

/**
 * A seeded permutation of 0 … length - 1 in constant memory: a Feistel network over the next power of four, applied repeatedly until the
 * result is in range (cycle walking, Black and Rogaway 2002). At most 2^52 entries, which doubles represent exactly.
 */
export function permutation(
  length: number,
  seed: number,
  epoch: number,
  /** Index of the data set in a mixture, so that two of equal length have different orders; undefined without a mixture. */
  part?: number,
): (index: number) => number {
  let halfBits = 1;
  while (4 ** halfBits < length) halfBits++;
  if (halfBits > 26) throw new RangeError(`A permutation of ${length} entries is more than 2^52`);
  const mask = 2 ** halfBits - 1;
  const random = Random.forStream(seed, 'sequences', epoch, ...(part === undefined ? [] : [part]));
  const keys = Array.from({ length: roundCount }, () => random.uint32());

  const encrypt = (value: number): number => {
    let left = Math.floor(value / (mask + 1));
    let right = value % (mask + 1);
    for (const key of keys) [left, right] = [right, left ^ (mix(right ^ key) & mask)];
    return left * (mask + 1) + right;
  };
  return (index) => {
    let value = encrypt(index);
    while (value >= length) value = encrypt(value);
    return value;
  };
}

/** Four rounds make a Feistel network pseudo-random (Luby and Rackoff 1988); two more are cheap. */
const roundCount = 6;

/** The finalizer of MurmurHash3: every input bit affects every output bit. */
function mix(value: number): number {
  let hash = value | 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** Maps every index to a number in [0, 1), a pure function of seed, purpose and index. */
export function seededShares(seed: number, purpose: string): (index: number) => number {
  const random = Random.forStream(seed, purpose);
  const [first, second] = [random.uint32(), random.uint32()];
  return (index) => mix(mix((index ^ first) >>> 0) ^ second) / 2 ** 32;
}
