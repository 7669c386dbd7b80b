import { describe, expect, it } from 'vitest';
import { epsilon, excess, seededArray } from '../engine/nativeReference.js';
import type { CardResult } from '../../engine/dist/device/cuda/cardResult.js';
import { headCrossEntropy, type HeadLimits } from '../../engine/dist/device/cuda/head.js';
import type { Kernels } from '../../engine/dist/device/cuda/kernels.js';
import { MatrixCalls } from '../../engine/dist/device/cuda/matrixCalls.js';
import { openCuda } from '../../engine/dist/device/cuda/openCuda.js';
import { onEverySchedule, unitOf } from './everySchedule.js';
import { modelOptions } from './modelPaths.js';

describe('the loss of the head', () => {
  const run = (vocabulary: number, targets: number[], logits: Float32Array, isTrained = true) => {
    const rows = targets.length;
    const stride = Math.ceil(vocabulary / 8) * 8;
    const scale = 1 / 3;
    return onEverySchedule((bench) => {
      const at = bench.empty(rows * stride * 4);
      for (let row = 0; row < rows; row++)
        bench.card.upload(at + row * stride * 4, logits.slice(row * vocabulary, (row + 1) * vocabulary));
      const gradient = isTrained ? bench.emptyActivations(rows, stride) : 0;
      const losses = bench.empty(rows * 4);
      bench.launch('head', 'cross_entropy', [rows], {
        ...{ gradient, losses, logits: at, targets: bench.ints(targets), vocabulary, stride, scale },
        gradient_stride: stride,
      });
      const [result, kept] = [bench.doubles([1, 2, 3]), bench.floats(new Float32Array(2))];
      const sums = { result, kept, losses, count: rows, kept_count: 2, scale };
      bench.launch('head', 'add_losses', [1], sums);
      return {
        losses: bench.readFloats(losses, rows),
        gradient: isTrained ? bench.readActivations(gradient, rows, vocabulary, stride) : null,
        result: bench.readDoubles(result, 3),
        kept: bench.readFloats(kept, 2),
      };
    });
  };

  it.each([1, 3, 17, 255, 300, 5001])('and the gradient of %d logits agree with float64', (vocabulary) => {
    const targets = [0, vocabulary - 1, -1, Math.floor(vocabulary / 2)];
    const logits = seededArray(targets.length * vocabulary, 1, 30);
    const { losses, gradient, result, kept } = run(vocabulary, targets, logits);
    const expected = { losses: [] as number[], gradient: [] as number[] };
    targets.forEach((target, row) => {
      const of = [...logits.slice(row * vocabulary, (row + 1) * vocabulary)];
      const most = Math.max(...of);
      const sum = of.reduce((total, v) => total + Math.exp(v - most), 0);
      expected.losses.push(target < 0 ? 0 : Math.log(sum) + most - of[target]!);
      of.forEach((v, i) => {
        const p = Math.exp(v - most) / sum;
        expected.gradient.push(target < 0 ? 0 : (i === target ? p - 1 : p) / 3);
      });
    });
    expect(excess(losses, expected.losses, () => 200 * epsilon)).toBeLessThanOrEqual(0);
    expect(
      excess(
        gradient!,
        expected.gradient,
        (i) => unitOf('bf16') * Math.abs(expected.gradient[i]!) + 64 * epsilon,
      ),
    ).toBeLessThanOrEqual(0);
    const total = losses.reduce((sum, v) => sum + v, 0);
    expect(result[0]).toBeCloseTo(1 + total / 3, 4);
    expect(result[1]).toBeCloseTo(2 + total, 12);
    expect(result[2]).toBe(3);
    expect(kept).toEqual(losses.slice(0, 2));
    expect(run(vocabulary, targets, logits, false).losses).toEqual(losses);
  });

  it('of many rows is made in pieces, whose gradients are those of the whole', async () => {
    const [rows, vocabulary, hidden] = [300, 40, 16];
    const made = async (limits?: HeadLimits) => {
      const device = openCuda({ ...modelOptions, precision: 'bfloat16' });
      const calls = new MatrixCalls(device, (device as unknown as { kernels: Kernels }).kernels, device.blas);
      const make = (length: number, seed: number) => {
        const buffer = device.alloc(length);
        device.upload(buffer, seededArray(length, seed));
        return buffer;
      };
      const [x, head] = [make(rows * hidden, 1), make(vocabulary * hidden, 2)];
      const [dx, dhead] = [device.alloc(rows * hidden), device.alloc(vocabulary * hidden)];
      const result = device.newResult(rows);
      const into = {
        dx: device.floats(dx, dx.length, 'dx'),
        head: device.floats(dhead, dhead.length, 'dhead'),
      };
      const targets = Int32Array.from({ length: rows }, (_, i) => (i * 7) % vocabulary);
      const pass = {
        shape: { rows, vocabulary, hidden },
        x,
        head,
        targets,
        scale: 0.5,
        firstRow: 0,
        precision: 'same' as const,
      };
      headCrossEntropy(calls, result as CardResult, into, pass, 'bfloat16', limits);
      const { rowLosses } = await device.readResult(result);
      const found = [rowLosses, await device.download(dx), await device.download(dhead)] as Float32Array[];
      device.close();
      return found;
    };
    const whole = await made();
    // 256 rows and the rest, in pieces of 128.
    const pieces = await made({
      ...{ logitBytes: 128 * vocabulary * 4, gradientBytes: 256 * vocabulary * 2 },
      tileElements: Infinity,
    });
    expect(pieces[0]).toEqual(whole[0]);
    expect(pieces[1]).toEqual(whole[1]);
    expect(excess(pieces[2]!, whole[2]!, () => 300 * epsilon)).toBeLessThanOrEqual(0);
  });

  it('is not finite where a logit is not', () => {
    for (const bad of [NaN, Infinity]) {
      const logits = seededArray(17, 2);
      logits[5] = bad;
      expect(Number.isFinite(run(17, [1], logits).losses[0])).toBe(false);
    }
  });
});
