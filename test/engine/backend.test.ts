import * as tf from '@tensorflow/tfjs-core';
import type { Tensor } from '@tensorflow/tfjs-core';
import { describe, expect, it, vi } from 'vitest';
import { BufferPool } from '../../engine/src/backend/bufferPool.js';
import type { NativeBackend } from '../../engine/src/backend/nativeBackend.js';
import { selectBackend } from '../../engine/src/backend/selectBackend.js';
import { seeded } from './opCases.js';

const selectNative = async () => {
  await selectBackend({ device: 'native', precision: 'float32' });
  return tf.backend() as NativeBackend;
};

describe('choosing a backend', () => {
  it('auto takes the native one on a CPU and the precision its instructions are made for', async () => {
    const backend = await selectBackend({ device: 'auto', precision: 'auto' });
    expect(backend.name).toBe('native');
    expect(backend.native!.describe().instructionSets[0]).toBe(backend.instructionSet);
    const hasBfloat16 = ['amx', 'avx512bf16'].includes(backend.instructionSet!);
    expect(backend.precision).toBe(hasBfloat16 ? 'bfloat16' : 'float32');
    expect(backend.threadCount).toBeGreaterThanOrEqual(1);
    expect(tf.getBackend()).toBe('native');
    const portable = await selectBackend({
      device: 'auto',
      precision: 'auto',
      instructionSet: 'portable',
      threads: 1,
    });
    expect(portable).toMatchObject({ instructionSet: 'portable', threadCount: 1, precision: 'float32' });
  });

  it('an instruction set that does not exist is refused', async () => {
    await expect(
      selectBackend({ device: 'native', precision: 'auto', instructionSet: 'mmx' as never }),
    ).rejects.toThrow();
  });

  it('the reference backend computes in float32 and refuses bfloat16', async () => {
    const backend = await selectBackend({ device: 'reference', precision: 'auto' });
    expect(backend).toMatchObject({ name: 'reference', precision: 'float32', instructionSet: null });
    expect(backend.native).toBeNull();
    expect(tf.getBackend()).toBe('cpu');
    await expect(selectBackend({ device: 'reference', precision: 'bfloat16' })).rejects.toThrow('float32');
  });

  it('TensorFlow asked for by name and not installed says what to install', async () => {
    await expect(selectBackend({ device: 'tensorflow', precision: 'auto' })).rejects.toThrow(
      'npm install @tensorflow/tfjs-node',
    );
  });

  it('prints nothing, though tfjs-backend-cpu would', async () => {
    const warn = vi.spyOn(console, 'warn');
    for (const device of ['native', 'reference'] as const) {
      await selectBackend({ device, precision: 'auto' });
      tf.matMul(tf.ones([2, 2]), tf.ones([2, 2])).dispose();
    }
    expect(warn).not.toHaveBeenCalled();
    warn.mockRestore();
  });

  it('tensors made on one backend are usable on the next', async () => {
    await selectBackend({ device: 'reference', precision: 'auto' });
    const x = tf.tensor2d([1, 2, 3, 4], [2, 2]);
    await selectNative();
    const product = tf.matMul(x, x);
    await selectBackend({ device: 'native', precision: 'float32', threads: 1 });
    expect([...tf.add(product, x).dataSync()]).toEqual([8, 12, 18, 26]);
  });
});

describe('kernels of the native backend', () => {
  const a = (shape: number[]) => tf.tensor(seeded(tf.util.sizeFromShape(shape), 'a'), shape);
  const b = (shape: number[]) => tf.tensor(seeded(tf.util.sizeFromShape(shape), 'b'), shape);
  const cases: [string, () => Tensor][] = [
    ['matMul', () => tf.matMul(a([5, 7]), b([7, 3]))],
    ['matMul, both transposed', () => tf.matMul(a([7, 5]), b([3, 7]), true, true)],
    ['matMul of a batch, right transposed', () => tf.matMul(a([4, 5, 7]), b([4, 3, 7]), false, true)],
    ['matMul of a batch and a matrix', () => tf.matMul(a([4, 5, 7]), b([7, 3]))],
    [
      'matMul of a matrix and a batch, left transposed',
      () => tf.matMul(a([7, 5]), b([2, 2, 7, 3]), true, false),
    ],
    ['fused matMul', () => tf.fused.matMul({ a: a([5, 7]) as tf.Tensor2D, b: b([7, 3]) as tf.Tensor2D })],
    [
      'fused matMul with bias and activation',
      () =>
        tf.fused.matMul({
          a: a([5, 7]) as tf.Tensor2D,
          b: b([7, 3]) as tf.Tensor2D,
          bias: a([3]),
          activation: 'relu',
        }),
    ],
    ['add', () => tf.add(a([5, 7]), b([5, 7]))],
    ['add of a row', () => tf.add(a([5, 7]), b([7]))],
    ['mul', () => tf.mul(a([5, 7]), b([5, 7]))],
    ['mul by a number', () => tf.mul(a([5, 7]), 3)],
    ['mul by a column', () => tf.mul(a([5, 7]), b([5, 1]))],
    ['mul of a number and a matrix of one', () => tf.mul(a([]), b([1, 1]))],
    ['softmax', () => tf.softmax(a([5, 7]))],
  ];
  it.each(cases)('%s is what tfjs-backend-cpu computes', async (_, compute) => {
    await selectBackend({ device: 'reference', precision: 'auto' });
    const expected = compute();
    const values = expected.dataSync();
    await selectNative();
    const actual = compute();
    expect(actual.shape).toEqual(expected.shape);
    const found = actual.dataSync();
    values.forEach((value, i) => expect(Math.abs(found[i]! - value)).toBeLessThan(1e-5));
  });
});

describe('buffers of the native backend', () => {
  it('are used again once their tensor is disposed', async () => {
    const native = await selectNative();
    const first = native.output([11, 13]);
    const shared = first.tensor.clone();
    first.tensor.dispose();
    const second = native.output([11, 13]);
    expect(second.values).not.toBe(first.values); // the clone still has the data
    shared.dispose();
    expect(native.output([13, 11]).values).toBe(first.values);
  });

  it('are free memory again when they are dropped, and only so many are kept', async () => {
    const native = await selectNative();
    const { tensor, values } = native.output([11, 13]);
    tensor.dispose();
    native.dropFreeBuffers();
    expect(native.output([11, 13]).values).not.toBe(values);

    const pool = new BufferPool(100);
    const [first, second, third] = [new Float32Array(10), new Float32Array(12), new Float32Array(8)] as const;
    for (const array of [first, second, third, new Float32Array(26)]) pool.give(array);
    expect(pool.take(12)).toBe(second);
    expect(pool.take(8)).toBe(third);
    expect(pool.take(10)).not.toBe(first); // 40 + 48 + 32 bytes are more than 100: the oldest went
    expect(pool.take(26).length).toBe(26);
  });

  it('are not used again when a kernel may have made a view of them', async () => {
    const native = await selectNative();
    const { tensor, values } = native.output([4, 3]);
    values.fill(1);
    const slice = tf.slice(tensor, [1, 0], [2, 3]);
    tensor.dispose();
    native.output([4, 3]).values.fill(9);
    expect([...slice.dataSync()]).toEqual([1, 1, 1, 1, 1, 1]);
  });

  it('are read as copies', async () => {
    const native = await selectNative();
    const { tensor, values } = native.output([3]);
    values.fill(1);
    const read = tensor.dataSync();
    tensor.dispose();
    native.output([3]).values.fill(9);
    expect([...read]).toEqual([1, 1, 1]);
  });

  it('of a caller are never used again', async () => {
    const native = await selectNative();
    const mine = new Float32Array(17).fill(1);
    tf.tensor1d(mine).dispose();
    native.output([17]).values.fill(9);
    expect([...mine]).toEqual(new Array(17).fill(1));
  });

  it('hold a gradient that is summed in place apart from the one that shares its data', async () => {
    const native = await selectNative();
    // y = x + x + x through Identity: every gradient of x is the same data, counted by reference.
    const x = tf.variable(tf.ones([2, 2]));
    const { grads } = native.withOwnedGradients(() =>
      tf.variableGrads(
        () =>
          tf.sum(
            tf.mul(tf.add(tf.add(x.clone(), x.clone()), x.clone()), tf.tensor2d([1, 2, 3, 4], [2, 2])),
          ) as tf.Scalar,
        [x],
      ),
    );
    expect([...grads[x.name]!.dataSync()]).toEqual([3, 6, 9, 12]);
  });
});
