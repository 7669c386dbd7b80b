import { spawnSync } from 'node:child_process';
import { describe, expect, it, vi } from 'vitest';
import { BufferPool } from '../../engine/dist/device/bufferPool.js';
import { measureCpu } from '../../engine/dist/device/cpu/measureCpu.js';
import { loadNativeAddon, type PackedBase } from '../../engine/dist/device/cpu/nativeAddon.js';
import { isTensorflowSetUp } from '../../engine/dist/device/tfjs/tensorflow.js';
import { openDevice } from '../../engine/dist/openDevice.js';

describe('choosing a device', () => {
  it('auto takes the native one on a CPU and the precision its instructions are made for', async () => {
    const { description } = await openDevice({ device: 'auto', precision: 'auto' });
    const [best] = loadNativeAddon().describe().instructionSets;
    expect(description).toMatchObject({ name: 'native', instructionSet: best });
    expect(description.precision).toBe(['amx', 'avx512bf16'].includes(best!) ? 'bfloat16' : 'float32');
    expect(description.threadCount).toBeGreaterThanOrEqual(1);
    const portable = await openDevice({
      device: 'auto',
      precision: 'auto',
      instructionSet: 'portable',
      threads: 1,
    });
    expect(portable.description).toMatchObject({
      instructionSet: 'portable',
      threadCount: 1,
      precision: 'float32',
    });
  });

  it.each([1, 2])(
    'is measured as it is with %i threads, although something holds a core up for a moment',
    (threads) => {
      const rates: Record<string, number> = { float32: 260e9, bfloat16: 240e9, int8: 1000e9 };
      for (let from = 0; from < 60; from += 6) {
        let now = 0;
        let computed = 0;
        let product = 0;
        const multiply = (rows: number, { base }: { base: object }): void => {
          const { inFeatures, outFeatures, precision } = base as {
            inFeatures: number;
            outFeatures: number;
            precision: string;
          };
          const isHeldUp = product >= from && product < from + 300; // of 360
          product++;
          const milliseconds =
            (2000 * rows * inFeatures * outFeatures * (isHeldUp ? 2 : 1)) / rates[precision]!;
          computed += threads * milliseconds;
          now += milliseconds * (threads === 1 ? 3 : 1); // others have their turns
        };
        const measured = measureCpu(
          {
            packBase: (_, inFeatures, outFeatures, precision) =>
              ({ inFeatures, outFeatures, precision }) as unknown as PackedBase,
            releaseBase: () => undefined,
            linearForward: (_y, _xa, _x, layer, rows) => multiply(rows, layer),
            linearBackward: (_dx, _da, _db, _dy, _x, _xa, layer, rows) => multiply(rows, layer),
            addInPlace: (sum) => void (now += (3 * sum.byteLength) / 20e6),
          },
          threads,
          { wall: () => now, processor: () => computed },
        );
        for (const precision of ['float32', 'bfloat16', 'int8'] as const)
          expect(measured[`${precision}Flops`] / rates[precision]!).toBeCloseTo(1, 9);
        expect(measured.memoryBytesPerSecond / 20e9).toBeCloseTo(1, 9);
      }
    },
  );

  it('an instruction set that does not exist is refused', async () => {
    await expect(
      openDevice({ device: 'native', precision: 'auto', instructionSet: 'mmx' as never }),
    ).rejects.toThrow('mmx');
  });

  it('the reference computes in float32 and refuses bfloat16', async () => {
    const { description } = await openDevice({ device: 'reference', precision: 'auto' });
    expect(description).toMatchObject({ name: 'reference', precision: 'float32', instructionSet: null });
    await expect(openDevice({ device: 'reference', precision: 'bfloat16' })).rejects.toThrow('float32');
  });

  it.skipIf(isTensorflowSetUp())(
    'TensorFlow asked for by name and not installed says what to do',
    async () => {
      await expect(openDevice({ device: 'tensorflow', precision: 'auto' })).rejects.toThrow(
        /"npm run setup:tensorflow", else "npm install @tensorflow\/tfjs-node"/,
      );
    },
  );

  describe.skipIf(!isTensorflowSetUp())('TensorFlow, set up', () => {
    it('says what it is, and has its versions for the record of a job', async () => {
      const { description } = await openDevice({ device: 'tensorflow', precision: 'auto' });
      expect(description).toMatchObject({ name: 'tensorflow', precision: 'float32', instructionSet: null });
      expect(description.libraries).toMatchObject({
        tensorflow: expect.stringMatching(/^2\.\d+\.\d+$/) as string,
        'tfjs-node': '4.22.0',
      });
    });

    it('works where Node.js has dropped what its package calls', () => {
      // As in Node.js 23, before any of our code is loaded.
      const program = `
        import util from 'node:util';
        delete util.isNullOrUndefined;
        delete util.isArray;
        const { openDevice } = await import('@relora/engine');
        const device = await openDevice({ device: 'tensorflow', precision: 'auto' });
        const [a, c] = [device.alloc(1), device.alloc(1)];
        device.upload(a, Float32Array.of(3));
        device.matmul(c, a, a, { m: 1, n: 1, k: 1, transposeA: false, transposeB: false });
        console.log((await device.download(c))[0]);`;
      const node = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' });
      expect(node.stdout, node.stderr).toBe('9\n');
    });
  });

  it('prints nothing, though tfjs-backend-cpu would', async () => {
    const warn = vi.spyOn(console, 'warn');
    const device = await openDevice({ device: 'reference', precision: 'auto' });
    const [a, b, c] = [device.alloc(4), device.alloc(4), device.alloc(4)];
    device.matmul(c, a, b, { m: 2, n: 2, k: 2, transposeA: false, transposeB: false });
    expect(warn).not.toHaveBeenCalled();
    warn.mockRestore();
  });

  it('devices of one process do not change each other', async () => {
    const [best] = loadNativeAddon().describe().instructionSets;
    const first = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
    const weight = first.alloc(16 * 16);
    first.zero(weight);
    const base = first.packBase(weight, 16, 16);
    const second = await openDevice({
      device: 'native',
      precision: 'float32',
      instructionSet: 'portable',
      threads: 1,
    });
    expect(second.description.instructionSet).toBe('portable');
    expect(first.description.instructionSet).toBe(best);
    first.repackBase(base, weight); // refused: the kernels are those of another instruction set
    expect(first.kernelCounts().get('repackBase')).toBe(1);
    expect(second.kernelCounts().has('repackBase')).toBe(false);
    first.releaseBase(base);
  });
});

describe.each(['native', 'reference'] as const)('memory of %s', (name) => {
  const open = () => openDevice({ device: name, precision: 'float32', threads: 1 });

  it('is read as copies, and gives back what it held', async () => {
    const device = await open();
    const { count, bytes } = device.memory();
    const buffer = device.alloc(1000);
    expect(device.memory()).toEqual({ count: count + 1, bytes: bytes + 4000 });
    device.upload(buffer, new Float32Array(1000).fill(1));
    const read = await device.download(buffer);
    device.zero(buffer);
    expect(read[0]).toBe(1);
    device.release(buffer);
    device.release(null);
    expect(device.memory()).toEqual({ count, bytes });
    expect(() => device.zero(buffer)).toThrow('given back already');
  });

  it('refuses values of another length or type, and buffers of others', async () => {
    const device = await open();
    const [floats, codes] = [device.alloc(3), device.alloc(3, 'int8')];
    expect(() => device.upload(floats, new Float32Array(2))).toThrow('must be 3 of float32, not 2');
    expect(() => device.upload(codes, new Uint8Array(3))).toThrow('of int8, not 3 of uint8');
    expect(() => device.addInPlace(floats, codes)).toThrow('not of int8');
    expect(() => device.zero({ length: 3, type: 'float32' })).toThrow('not of this device');
    await expect(device.download(device.alloc(3, 'activation'))).rejects.toThrow('activation');
  });

  it('of an allocation in parts is one and many, with zeros between', async () => {
    const device = await open();
    const { whole, parts } = device.allocTogether([3, 0, 20]);
    expect(parts.map(({ length }) => length)).toEqual([3, 0, 20]);
    parts.forEach((part, index) => device.upload(part, new Float32Array(part.length).fill(index + 1)));
    device.scaleInPlace(whole, 2);
    const [first, , last] = await Promise.all(parts.map((part) => device.download(part)));
    expect([...first!]).toEqual([2, 2, 2]);
    expect([...last!]).toEqual(new Array(20).fill(6));
    const sum = [...(await device.download(whole))].reduce((total, value) => total + value, 0);
    expect(sum).toBe(6 + 120);
    device.release(whole);
  });
});

it('memory that is discarded or trimmed leaves the process now, but a part of what somebody reads', async () => {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
  const values = new Float32Array(1000);
  device.discard(values.subarray(10));
  expect(values).toHaveLength(1000);
  device.discard(values);
  expect(values).toHaveLength(0);

  const length = 2 ** 26;
  const buffer = device.alloc(length);
  device.upload(buffer, new Float32Array(length).fill(1)); // the source is left to the garbage collector
  device.release(buffer);
  const before = process.memoryUsage().arrayBuffers;
  device.trim();
  expect(before - process.memoryUsage().arrayBuffers).toBeGreaterThanOrEqual(4 * length);
});

it('buffers that are free are used again, and only so many are kept', () => {
  const pool = new BufferPool(100);
  const [first, second, third] = [new Float32Array(10), new Float32Array(12), new Float32Array(8)] as const;
  for (const array of [first, second, third, new Float32Array(26)]) pool.give(array);
  expect(pool.take(12)).toBe(second);
  expect(pool.take(8)).toBe(third);
  expect(pool.take(10)).not.toBe(first); // 40 + 48 + 32 bytes exceed 100: the oldest array was dropped
  expect(pool.take(26).length).toBe(26);
  pool.give(first);
  expect(pool.clear()).toContain(first);
  expect(pool.take(10)).not.toBe(first);
});
