import { afterEach, describe, expect, it } from 'vitest';
import { openModelCard, sanitizer, schedules, type ModelCard } from './modelCard.js';

/** Kernels with planted faults, and correct versions of them. Each block has two warps and 64 floats of everything. */
const planted = {
  reverse: `
    p.to[threadIdx.x] = 0;
    tile[threadIdx.x] = p.from[threadIdx.x];
    __syncthreads();
    p.to[threadIdx.x] = tile[63 - threadIdx.x];`,
  missingBarrier: `
    tile[threadIdx.x] = p.from[threadIdx.x];
    p.to[threadIdx.x] = tile[63 - threadIdx.x];`,
  missingWarpBarrier: `
    tile[threadIdx.x] = p.from[threadIdx.x];
    p.to[threadIdx.x] = tile[threadIdx.x ^ 1];`,
  warpBarrier: `
    tile[threadIdx.x] = p.from[threadIdx.x];
    __syncwarp();
    p.to[threadIdx.x] = tile[threadIdx.x ^ 1];`,
  overwriteWithoutBarrier: `
    tile[threadIdx.x] = p.from[threadIdx.x];
    __syncthreads();
    const float read = tile[63 - threadIdx.x];
    tile[threadIdx.x] = 0;
    p.to[threadIdx.x] = read;`,
  barrierOfSome: `
    if (threadIdx.x < 32) __syncthreads();
    p.to[threadIdx.x] = p.from[threadIdx.x];`,
  shuffleOfSome: `
    float value = p.from[threadIdx.x];
    if (threadIdx.x % 2 == 0) value = __shfl_xor_sync(0xffffffffu, value, 2);
    p.to[threadIdx.x] = value;`,
  readBeyond: 'p.to[threadIdx.x] = p.from[threadIdx.x + 1];',
  writeBefore: 'p.to[static_cast<int>(threadIdx.x) - 1] = p.from[threadIdx.x];',
  indexBeyond: 'tile[threadIdx.x + p.one] = 1; p.to[threadIdx.x] = tile[threadIdx.x + p.one];',
  uninitializedShared: `
    if (p.one == 0) tile[threadIdx.x] = 1;
    p.to[threadIdx.x] = tile[threadIdx.x];`,
  uninitializedGlobal: 'p.from[threadIdx.x] = p.to[threadIdx.x];',
  sharedByBlocks: 'p.to[0] = static_cast<float>(blockIdx.x);',
  copyNotAwaited: `
    if (threadIdx.x < 16) copy_async_16(tile + 4 * threadIdx.x, p.from + 4 * threadIdx.x, 16);
    commit_copies();
    __syncthreads();
    p.to[threadIdx.x] = tile[threadIdx.x];
    wait_copies<0>();`,
  copyAwaited: `
    if (threadIdx.x < 16) copy_async_16(tile + 4 * threadIdx.x, p.from + 4 * threadIdx.x, 16);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    p.to[threadIdx.x] = tile[threadIdx.x];`,
  copyNotShared: `
    if (threadIdx.x < 16) copy_async_16(tile + 4 * threadIdx.x, p.from + 4 * threadIdx.x, 16);
    commit_copies();
    wait_copies<0>();
    p.to[threadIdx.x] = tile[threadIdx.x];`,
};

const text = (body: string) => `#include "device.h"
struct FaultParameters {
  float* to;
  float* from;
  int one;
};
KERNEL(fault, FaultParameters, 64) {
  __shared__ __align__(16) float tile[64];
  (void)tile;
  ${body}
}
`;

let card: ModelCard | undefined;
afterEach(() => {
  card?.model.setSchedule(schedules[0]);
  card?.close();
});

function run(name: keyof typeof planted, { checked = true, blocks = 1 } = {}) {
  card = openModelCard({ checked, texts: { [name]: text(planted[name]) } });
  const { model, kernels } = card;
  model.takeFaults();
  const from = card.allocate(256);
  const to = card.allocate(256);
  card.upload(
    from,
    Float32Array.from({ length: 64 }, (_, i) => i),
  );
  kernels.launch({ file: name, kernel: 'fault', grid: [blocks], parameters: { to, from, one: 1 } });
  const result = new Float32Array(64);
  let error: unknown;
  try {
    card.download(result, to);
  } catch (caught) {
    error = caught;
  }
  return { result, error, faults: model.takeFaults() };
}

const backwards = Float32Array.from({ length: 64 }, (_, i) => 63 - i);

describe('the model of a card runs kernels as a card does', () => {
  it('threads of a block meet at barriers', () => {
    const { result, error, faults } = run('reverse', { checked: false });
    expect(error).toBeUndefined();
    expect(result).toEqual(backwards);
    expect(faults).toEqual([]);
  });

  it('fills memory with NaN', () => {
    card = openModelCard();
    const result = new Float32Array(16);
    card.download(result, card.allocate(64));
    expect(result.every(Number.isNaN)).toBe(true);
  });

  it('finds a write beside an allocation by its guard, also where accesses are not checked', () => {
    if (sanitizer !== '') return; // the sanitizer would end the process there
    const { faults } = run('writeBefore', { checked: false });
    expect(faults.join()).toMatch(/a write beside an allocation of 256 bytes/);
  });
});

describe.skipIf(sanitizer !== '')('the shadow reports what is wrong in a kernel, and nothing else', () => {
  it.each(['reverse', 'warpBarrier', 'copyAwaited'] as const)('nothing in %s', (name) => {
    const { error, faults } = run(name);
    expect(error).toBeUndefined();
    expect(faults).toEqual([]);
  });

  it.each([
    ['missingBarrier', /read (without a barrier|of memory that nothing)/],
    ['missingWarpBarrier', /read (without a barrier|of memory that nothing)/],
    [
      'overwriteWithoutBarrier',
      /write without a barrier after another thread's access: offset \d+ of shared/,
    ],
    ['copyNotAwaited', /without a barrier|nothing has written/],
    ['copyNotShared', /read without a barrier/],
    ['uninitializedShared', /read of memory that nothing has written: offset 0 of shared memory/],
    [
      'uninitializedGlobal',
      /read of memory that nothing has written: offset 0 of an allocation of 256 bytes/,
    ],
  ] as const)('%s', (name, expected) => {
    expect(run(name).faults.join('\n')).toMatch(expected);
  });

  it('two blocks that write one place', () => {
    expect(run('sharedByBlocks', { blocks: 2 }).faults.join()).toMatch(/block 1.*write without a barrier/);
  });

  it.each([
    ['barrierOfSome', /waits at a barrier that other threads do not come to/],
    ['shuffleOfSome', /waits for lanes of its warp that do not come|different operations/],
    ['readBeyond', /thread 63: read of 4 bytes out of bounds: offset 256 of an allocation of 256 bytes/],
    ['writeBefore', /thread 0: write of 4 bytes out of bounds/],
    ['indexBeyond', /thread 63: an index beyond its array in .*indexBeyond.cu/],
  ] as const)('%s, and loses the card as a card is lost', (name, expected) => {
    const { error, faults } = run(name);
    expect(faults.join()).toMatch(expected);
    expect(error).toMatchObject({ code: 'CUDA_ERROR_ILLEGAL_ADDRESS' });
  });
});

it('another order of threads shows what depends on it', () => {
  const results = schedules.map((schedule) => {
    card = openModelCard({ texts: { missingBarrier: text(planted.missingBarrier) } });
    card.model.setSchedule(schedule);
    return run('missingBarrier', { checked: false }).result;
  });
  expect(new Set(results.map(String)).size).toBeGreaterThan(1);
});
