import { describe, expect, it } from 'vitest';
import { loadNativeAddon } from '../../engine/dist/device/cpu/nativeAddon.js';
import type { DropoutPlace, Layer } from '../../engine/dist/device/device.js';
import { dropoutMask, philox } from '../../engine/dist/device/dropout.js';

const share = 0.25;
const place: DropoutPlace = { version: 2, seed: 2 ** 40 + 7, step: 3, micro: 0, firstSequence: 9 };
const layer = { name: 'layer', index: 5, inFeatures: 7 } as Layer;
const time = 5; // 35 elements per sequence: the last counter is used only in part

function maskOf(
  sequences: number,
  changes: Partial<DropoutPlace> = {},
  of: Partial<Layer> = {},
): Float32Array {
  const mask = new Float32Array(sequences * time * layer.inFeatures);
  dropoutMask(mask, { share, place: { ...place, ...changes } }, { ...layer, ...of }, time);
  return mask;
}

describe('counted masks of dropout', () => {
  it('are drawn by Philox4x32-10, as its authors publish it', () => {
    const result = new Uint32Array(4);
    const ones = 0xffffffff;
    philox(result, [0, 0, 0, 0], [0, 0]);
    expect([...result]).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    philox(result, [ones, ones, ones, ones], [ones, ones]);
    expect([...result]).toEqual([0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    philox(result, [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
    expect([...result]).toEqual([0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
  });

  it('do not depend on how a step is cut into micro-batches, but on all that names an element', () => {
    const whole = maskOf(4);
    expect([...maskOf(1, { micro: 2, firstSequence: 11 })]).toEqual([...whole.subarray(70, 105)]);
    for (const other of [{ seed: 8 }, { seed: 7 }, { step: 4 }, { firstSequence: 10 }])
      expect(maskOf(4, other)).not.toEqual(whole);
    expect(maskOf(4, {}, { index: 6 })).not.toEqual(whole);
    expect(maskOf(4, {}, { name: 'another' })).toEqual(whole);
  });

  it('keep the share and the mean', () => {
    const mask = maskOf(600);
    expect(new Set(mask)).toEqual(new Set([0, Math.fround(4 / 3)]));
    expect(mask.reduce((sum, value) => sum + value, 0) / mask.length).toBeCloseTo(1, 1);
  });

  it('are the same natively, whatever the threads', () => {
    for (const [sequences, sequenceLength] of [
      [3, 35],
      [2, 40_003],
    ] as const) {
      const wanted = new Float32Array(sequences * sequenceLength);
      dropoutMask(wanted, { share, place }, { ...layer, inFeatures: sequenceLength }, 1);
      for (const threads of [1, 3]) {
        const addon = loadNativeAddon().open({ instructionSet: 'portable', threads });
        const mask = new Float32Array(wanted.length).fill(NaN);
        addon.dropoutMask(mask, { share, ...place, layer: 5, sequenceLength });
        expect(Buffer.from(mask.buffer).equals(Buffer.from(wanted.buffer))).toBe(true);
      }
    }
  });
});
