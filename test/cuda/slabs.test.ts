import { describe, expect, it } from 'vitest';
import { Slabs } from '../../engine/dist/device/cuda/slabs.js';

/** Allocations of a driver with limited memory. */
function source(bytesMax = Infinity) {
  const held = new Map<number, number>();
  let next = 256;
  const sum = () => [...held.values()].reduce((total, bytes) => total + bytes, 0);
  return {
    held,
    sum,
    allocate(bytes: number): number {
      if (sum() + bytes > bytesMax) throw new Error('out of memory');
      const address = next;
      next += bytes + 256;
      held.set(address, bytes);
      return address;
    },
    release(address: number): void {
      if (!held.delete(address)) throw new Error('not allocated');
    },
  };
}

describe('slabs', () => {
  it('give pieces that never overlap, at the same addresses for the same calls, and take them back whole', () => {
    const run = () => {
      const from = source();
      const slabs = new Slabs(from, false);
      const taken: { address: number; bytes: number }[] = [];
      const addresses: number[] = [];
      let state = 7;
      const random = (below: number) => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return state % below;
      };
      for (let i = 0; i < 3000; i++) {
        if (random(3) > 0 || taken.length === 0) {
          const bytes = 256 * (1 + random(i % 50 === 0 ? 2 ** 20 : 2 ** 12));
          const address = slabs.take(bytes, random(2) > 0 ? 'pass' : 'any');
          for (const other of taken)
            if (address < other.address + other.bytes && other.address < address + bytes)
              throw new Error(`${address} of ${bytes} bytes lies in ${other.address} of ${other.bytes}`);
          const isInside = [...from.held].some(
            ([begin, size]) => begin <= address && address + bytes <= begin + size,
          );
          expect(isInside).toBe(true);
          taken.push({ address, bytes });
          addresses.push(address);
        } else {
          const [piece] = taken.splice(random(taken.length), 1);
          slabs.give(piece!.address, piece!.bytes);
        }
      }
      for (const { address, bytes } of taken) slabs.give(address, bytes);
      slabs.trim();
      expect(from.held.size).toBe(0);
      return addresses;
    };
    expect(run()).toEqual(run());
  });

  it('let pieces of many sizes share what each needs at another time', () => {
    const from = source();
    const slabs = new Slabs(from, false);
    for (const bytes of [2 ** 25, 2 ** 24, 3 * 2 ** 23, 2 ** 26]) slabs.give(slabs.take(bytes), bytes);
    expect(from.sum()).toBe(2 ** 26);
  });

  it('ask for no more than is needed where there is no more', () => {
    const from = source(2 ** 20);
    const slabs = new Slabs(from, false);
    expect(slabs.take(2 ** 19)).toBeGreaterThan(0);
    expect(() => slabs.take(2 ** 20)).toThrow('out of memory');
  });

  it('that are apart are allocations of their own, used again for as much', () => {
    const from = source();
    const slabs = new Slabs(from, true);
    const [one, other] = [slabs.take(512), slabs.take(256)];
    expect([...from.held.values()]).toEqual([512, 256]);
    slabs.give(one, 512);
    expect(slabs.take(256)).not.toBe(one);
    expect(slabs.take(512)).toBe(one);
    slabs.give(other, 256);
    slabs.trim();
    expect(from.held.size).toBe(2);
  });

  it('put what waits for its backward pass at the end, so that what is made meanwhile and stays leaves it whole', () => {
    const from = source();
    const slabs = new Slabs(from, false);
    slabs.reserve(2 ** 27);
    const states = [1, 2, 3].map(() => {
      const state = slabs.take(2 ** 20, 'pass');
      slabs.take(2 ** 10);
      return state;
    });
    for (const state of states) slabs.give(state, 2 ** 20);
    slabs.take(2 ** 27 - 3 * 2 ** 10);
    expect(from.held.size).toBe(1);
  });
});
