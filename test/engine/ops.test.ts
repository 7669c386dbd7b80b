import * as tf from '@tensorflow/tfjs-core';
import type { Tensor } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { selectBackend } from '../../engine/src/backend/selectBackend.js';
import { halfCases } from './halfCases.js';
import { largerCases, seeded, smallCases, type OpCase } from './opCases.js';

const small = [...smallCases, ...halfCases('small')];
const larger = [...largerCases, ...halfCases('larger')];

interface Result {
  value: Float32Array;
  gradients: Float32Array[];
}

/** The value of an op and its gradients for a given gradient of the value. */
function run(op: OpCase, form: 'fused' | 'plain', upstream: 'random' | 'one' = 'random'): Result {
  return tf.tidy(() => {
    const inputs = op.shapes.map((shape, index) => tf.tensor(inputOf(op, index), shape, 'float32'));
    const apply = (...tensors: Tensor[]) => op[form](tensors);
    const value = apply(...inputs);
    const dy =
      upstream === 'one'
        ? tf.ones(value.shape)
        : tf.tensor(upstreamOf(op, value.size), value.shape, 'float32');
    const gradients = tf.grads(apply)(inputs, dy);
    return {
      value: value.dataSync<'float32'>(),
      gradients: gradients.map((gradient) => gradient.dataSync<'float32'>()),
    };
  });
}

const inputOf = (op: OpCase, index: number) =>
  seeded(
    op.shapes[index]!.reduce((product, size) => product * size, 1),
    `${op.name} ${index}`,
    op.stds?.[index],
  );
const upstreamOf = (op: OpCase, size: number) => seeded(size, `${op.name} upstream`);

/** Largest difference as a share of the largest expected value. */
function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  let largest = 1e-30;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    largest = Math.max(largest, Math.abs(expected[i]!));
    worst = Math.max(worst, Math.abs(actual[i]! - expected[i]!));
  }
  return worst / largest;
}

function expectClose(actual: Result, expected: Result, tolerance: number): void {
  expect(difference(actual.value, expected.value)).toBeLessThan(tolerance);
  expect(actual.gradients.length).toBe(expected.gradients.length);
  actual.gradients.forEach((gradient, index) => {
    // A single number is a sum of terms that cancel: rounding of its terms has no measure in the sum.
    if (gradient.length === 1 && tolerance > 1e-3) return;
    expect(difference(gradient, expected.gradients[index]!)).toBeLessThan(tolerance);
  });
}

describe('a fused op on the native backend agrees with its plain definition', () => {
  for (const op of [...small, ...larger]) {
    it(`${op.name}, float32`, async () => {
      await selectBackend({ device: 'reference', precision: 'auto' });
      const expected = run(op, 'plain');
      await selectBackend({ device: 'native', precision: 'float32' });
      // Sums of at most 300 products in two orders: far below sqrt(300) * 300 * 2^-24.
      expectClose(run(op, 'fused'), expected, 2e-5);
      expectClose(run(op, 'plain'), expected, 2e-5);
    });
  }
  for (const op of larger.filter(({ hasProducts }) => hasProducts)) {
    it(`${op.name}, bfloat16`, async () => {
      await selectBackend({ device: 'reference', precision: 'auto' });
      const expected = run(op, 'plain');
      await selectBackend({ device: 'native', precision: 'bfloat16' });
      // Each operand keeps 8 bits; what is rounded twice, as p = dy Bᵀ, is rounded again.
      const actual = run(op, 'fused');
      expectClose(actual, expected, 0.03);
      // If this were float32 arithmetic, the switch would do nothing.
      expect(difference(actual.value, expected.value)).toBeGreaterThan(1e-6);
    });
  }
  it('a loss at the end of a graph and one inside of it have the same gradients', async () => {
    const op = small.find(({ name }) => name.startsWith('headCrossEntropy'))!;
    await selectBackend({ device: 'native', precision: 'float32' });
    const alone = run(op, 'fused', 'one');
    const scaled = run(op, 'fused', 'random');
    const factor = upstreamOf(op, 1)[0]!;
    alone.gradients.forEach((gradient, index) => {
      expect(
        difference(
          scaled.gradients[index]!,
          gradient.map((entry) => entry * factor),
        ),
      ).toBeLessThan(1e-6);
    });
  });
});

describe.each([
  { device: 'reference', ops: smallCases },
  { device: 'native', ops: small },
] as const)('gradients agree with finite differences on $device', ({ device, ops }) => {
  for (const op of ops) {
    it(op.name, async () => {
      await selectBackend({ device, precision: 'float32' });
      const { gradients } = run(op, 'fused');
      const arrays = op.shapes.map((_, index) => inputOf(op, index));
      arrays.forEach((array, index) => {
        const numeric = Array.from(array, (entry, place) => {
          const h = 2 ** -7; // error of the formula ~ h², of float32 ~ 2^-24 / h
          const at = (moved: number) => {
            array[place] = moved;
            return weighedSum(op, arrays);
          };
          const slope = (at(entry + h) - at(entry - h)) / (2 * h);
          array[place] = entry;
          return slope;
        });
        expect(difference(gradients[index]!, numeric)).toBeLessThan(3e-3);
      });
    });
  }
});

/** sum(value * upstream) in float64, whose gradient is what `run` computes. */
function weighedSum(op: OpCase, arrays: Float32Array[]): number {
  return tf.tidy(() => {
    const value = op
      .fused(arrays.map((array, index) => tf.tensor(array.slice(), op.shapes[index], 'float32')))
      .dataSync();
    const upstream = upstreamOf(op, value.length);
    return value.reduce((sum, entry, place) => sum + entry * upstream[place]!, 0);
  });
}
