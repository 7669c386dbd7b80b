import * as tf from '@tensorflow/tfjs-core';
import type { Tensor2D } from '@tensorflow/tfjs-core';
import { beforeEach, describe, expect, it } from 'vitest';
import { selectBackend } from '../../engine/src/backend/selectBackend.js';
import { adamWInPlace } from '../../engine/src/ops/adamW.js';
import { addInPlace } from '../../engine/src/ops/addInPlace.js';
import { mergeAdapter } from '../../engine/src/ops/mergeAdapter.js';
import { sumSquares } from '../../engine/src/ops/sumSquares.js';
import { seeded } from './opCases.js';

describe.each(['reference', 'native'] as const)('on %s', (device) => {
  beforeEach(async () => {
    await selectBackend({ device, precision: 'float32' });
  });

  it('AdamW follows its formula through two updates', () => {
    const [p, m, v, g] = ['p', 'm', 'v', 'g'].map((name) => seeded(37, name)) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const variance = v.map(Math.abs);
    const expected = Float64Array.from(p);
    const [first, second] = [Float64Array.from(m), Float64Array.from(variance)];
    const parameter = tf.variable(tf.tensor1d(p.slice()));
    const moments = [m, variance].map((values) => tf.variable(tf.tensor1d(values.slice())));
    const gradient = tf.tensor1d(g);
    for (const count of [1, 2]) {
      const options = {
        learningRate: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weightDecay: 0.1,
        correction1: 1 - 0.9 ** count,
        correction2: 1 - 0.99 ** count,
        gradientScale: 0.5,
      };
      adamWInPlace([{ parameter, gradient, first: moments[0]!, second: moments[1]! }], options);
      for (let i = 0; i < 37; i++) {
        const scaled = 0.5 * g[i]!;
        first[i] = 0.9 * first[i]! + 0.1 * scaled;
        second[i] = 0.99 * second[i]! + 0.01 * scaled * scaled;
        const step = first[i]! / options.correction1 / (Math.sqrt(second[i]! / options.correction2) + 1e-8);
        expected[i]! -= 0.01 * (step + 0.1 * expected[i]!);
      }
    }
    expectEach(parameter.dataSync(), expected, 1e-5);
    expectEach(moments[0]!.dataSync(), first, 1e-5);
    expectEach(moments[1]!.dataSync(), second, 1e-5);
  });

  it('an update leaves what was read or cloned before as it was', () => {
    const parameter = tf.variable(tf.ones([4]));
    const cloned = parameter.clone();
    const read = parameter.dataSync();
    const [first, second] = [tf.variable(tf.zeros([4])), tf.variable(tf.zeros([4]))];
    adamWInPlace([{ parameter, gradient: tf.ones([4]), first, second }], {
      learningRate: 0.5,
      beta1: 0.9,
      beta2: 0.99,
      epsilon: 1e-8,
      weightDecay: 0,
      correction1: 0.1,
      correction2: 0.01,
      gradientScale: 1,
    });
    expect([...parameter.dataSync()]).toEqual([0.5, 0.5, 0.5, 0.5]);
    expect([...cloned.dataSync()]).toEqual([1, 1, 1, 1]);
    expect([...read]).toEqual([1, 1, 1, 1]);
  });

  it('a sum in place reaches the accumulator and nothing that shares its data', () => {
    const before = tf.memory().numTensors;
    const accumulator = tf.tensor1d([1, 2, 3]);
    const shared = accumulator.clone();
    const x = tf.tensor1d([10, 20, 30]);
    addInPlace(accumulator, x);
    addInPlace(accumulator, x);
    expect([...accumulator.dataSync()]).toEqual([21, 42, 63]);
    expect([...shared.dataSync()]).toEqual([1, 2, 3]);
    tf.dispose([accumulator, shared, x]);
    expect(tf.memory().numTensors).toBe(before);
  });

  it('sums squares of several tensors', () => {
    const values = seeded(1001, 'squares');
    const expected = values.reduce((sum, value) => sum + value * value, 0);
    const parts = [values.subarray(0, 7), values.subarray(7, 7), values.subarray(7)];
    const sum = sumSquares(parts.map((part) => tf.tensor1d(part)));
    expect(Math.abs(sum / expected - 1)).toBeLessThan(1e-5);
  });

  it('a merge adds scale A B, tells its norm, and changes nothing', () => {
    const [w, a, b] = [seeded(35, 'w'), seeded(15, 'a'), seeded(21, 'b')] as [
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const tensors = [tf.tensor2d(w, [5, 7]), tf.tensor2d(a, [5, 3]), tf.tensor2d(b, [3, 7])] as [
      Tensor2D,
      Tensor2D,
      Tensor2D,
    ];
    const { merged, finite, deltaNorm } = mergeAdapter(...tensors, 0.25);
    const delta = Float64Array.from(w, (_, i) => {
      let sum = 0;
      for (let r = 0; r < 3; r++) sum += a[Math.floor(i / 7) * 3 + r]! * b[r * 7 + (i % 7)]!;
      return 0.25 * sum;
    });
    expect(finite).toBe(true);
    expectEach(
      merged.dataSync(),
      delta.map((entry, i) => w[i]! + entry),
      1e-6,
    );
    expect(deltaNorm).toBeCloseTo(Math.hypot(...delta), 5);
    expect([...tensors[0].dataSync()]).toEqual([...w]);
  });

  it('a merge that is not finite says so', () => {
    const w = tf.zeros([4, 4]) as Tensor2D;
    const a = tf.fill([4, 2], 1e30) as Tensor2D;
    const b = tf.fill([2, 4], 1e30) as Tensor2D;
    expect(mergeAdapter(w, a, b, 1).finite).toBe(false);
  });
});

function expectEach(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number): void {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < expected.length; i++)
    expect(Math.abs(actual[i]! - expected[i]!)).toBeLessThan(tolerance);
}
