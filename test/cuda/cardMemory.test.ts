import { describe, expect, it } from 'vitest';
import { openCuda } from '../../engine/dist/device/cuda/openCuda.js';
import { seededArray } from '../engine/nativeReference.js';
import { modelOptions } from './modelPaths.js';

const open = () => openCuda({ ...modelOptions, precision: 'bfloat16' });

describe('parked weights', () => {
  it('leave the card, keep their values, and are the same buffer', async () => {
    const device = open();
    const values = seededArray(35 * 41, 1);
    const weight = device.alloc(values.length);
    device.upload(weight, values);
    const { bytes } = device.memory();
    device.park(weight);
    expect(device.memory().bytes).toBeLessThan(bytes);
    expect(await device.download(weight)).toEqual(values);
    device.upload(
      weight,
      values.map((value) => 2 * value),
    );
    expect(device.memory().bytes).toBeLessThan(bytes);
    expect(await device.download(weight)).toEqual(values.map((value) => 2 * value));
    device.scaleInPlace(weight, 0.5); // reads it at every step: it is copied back
    expect(device.memory().bytes).toBe(bytes);
    expect(await device.download(weight)).toEqual(values);
    device.release(weight);
    expect(device.memory()).toEqual({ count: 0, bytes: 0 });
    device.close();
  });

  it('take merges, which stay', async () => {
    const [inFeatures, outFeatures, rank] = [16, 24, 4];
    const merged = async (isParked: boolean) => {
      const device = open();
      const make = (length: number, seed: number) => {
        const buffer = device.alloc(length);
        device.upload(buffer, seededArray(length, seed));
        return buffer;
      };
      const weight = make(inFeatures * outFeatures, 2);
      const [a, b] = [make(inFeatures * rank, 3), make(rank * outFeatures, 4)];
      if (isParked) device.park(weight);
      const adapter = { rank, a, b, scale: 0.5, graph: 'merged', dropout: null } as const;
      const found = await device.mergeAdapter(weight, weight, adapter, { inFeatures, outFeatures });
      const values = await device.download(weight);
      device.close();
      return { found, values };
    };
    expect(await merged(true)).toEqual(await merged(false));
  });
});

describe('what products read of a parameter', () => {
  it('is rounded again when the parameter was written', async () => {
    const device = open();
    const [rows, hidden, vocabulary] = [4, 8, 16];
    const head = device.alloc(vocabulary * hidden);
    const x = device.alloc(rows * hidden);
    const logits = device.alloc(rows * vocabulary);
    device.upload(x, new Float32Array(rows * hidden).fill(1));
    const shape = { rows, hidden, vocabulary };
    const sumOf = async () => {
      device.headLogits(logits, { shape, x, head, firstRow: 0 }, 'run');
      return ((await device.download(logits)) as Float32Array)[0];
    };
    device.upload(head, new Float32Array(head.length).fill(1));
    expect(await sumOf()).toBe(hidden);
    device.upload(head, new Float32Array(head.length).fill(2));
    expect(await sumOf()).toBe(2 * hidden);
    device.scaleInPlace(head, 2);
    expect(await sumOf()).toBe(4 * hidden);
    device.zero(head);
    expect(await sumOf()).toBe(0);
    device.close();
  });
});
