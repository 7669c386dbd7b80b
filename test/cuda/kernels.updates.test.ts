import { describe, expect, it } from 'vitest';
import type { Layer } from '../../engine/dist/device/device.js';
import { dropoutMask } from '../../engine/dist/device/dropout.js';
import { epsilon, excess, roundToBfloat16, seededArray } from '../engine/nativeReference.js';
import { openCuda } from '../../engine/dist/device/cuda/openCuda.js';
import { onEverySchedule, type Bench } from './everySchedule.js';
import { modelOptions } from './modelPaths.js';

const blocks = (length: number, each = 256) => Math.ceil(length / each);

describe('the embedding', () => {
  it('takes rows of the table, and adds gradients of one id in the order of their places', () => {
    const [vocabulary, hidden, stride] = [7, 17, 24];
    const ids = [3, 0, 3, 6, 3];
    const table = seededArray(vocabulary * hidden, 1);
    const dy = roundToBfloat16(seededArray(ids.length * hidden, 2));
    const before = seededArray(vocabulary * hidden, 3);
    const { y, dtable } = onEverySchedule((bench) => {
      const to = bench.emptyActivations(ids.length, stride);
      bench.launch('embedding', 'embedding_forward', [ids.length], {
        ...{ y: to, table: bench.floats(table), ids: bench.ints(ids), hidden, stride },
      });
      const gradient = bench.floats(before);
      const partial = bench.empty(2 * hidden * 4);
      // The rows of id 3 are in two parts.
      bench.launch('embedding', 'embedding_backward', [4], {
        ...{ dtable: gradient, partial, dy: bench.activations(dy, ids.length, hidden, stride) },
        rows: bench.ints([1, 0, 2, 4, 3]),
        segments: bench.ints([0, 1, 0, -1, 1, 3, 3, 0, 3, 4, 3, 1, 4, 5, 6, -1]),
        ...{ hidden, stride },
      });
      bench.launch('embedding', 'embedding_add_parts', [1], {
        ...{ dtable: gradient, partial, ids: bench.ints([3, 0, 2]), hidden },
      });
      return {
        y: bench.readActivations(to, ids.length, hidden, stride),
        dtable: bench.readFloats(gradient, table.length),
      };
    });
    const rounded = roundToBfloat16(table);
    expect(y).toEqual(
      Float32Array.from(y, (_, i) => rounded[ids[Math.floor(i / hidden)]! * hidden + (i % hidden)]!),
    );
    const expected = Float64Array.from(before);
    ids.forEach((id, row) => {
      for (let i = 0; i < hidden; i++) expected[id * hidden + i]! += dy[row * hidden + i]!;
    });
    expect(excess(dtable, expected, () => 4 * 4 * epsilon)).toBeLessThanOrEqual(0);
  });
});

describe('the gradient of an embedding', () => {
  it('of an id that fills several blocks is that of a sum, the same again', async () => {
    const [vocabulary, hidden, rows] = [5, 8, 200];
    const device = openCuda({ ...modelOptions, precision: 'bfloat16' });
    const ids = Int32Array.from({ length: rows }, (_, i) => (i % 10 === 0 ? 4 : i % 50 === 1 ? 0 : 2));
    const [dtable, dy] = [device.alloc(vocabulary * hidden), device.alloc(rows * hidden)];
    const values = seededArray(rows * hidden, 20);
    device.upload(dy, values);
    const made = async () => {
      device.embeddingBackward(dtable, dy, ids, { rows, vocabulary, hidden }, false);
      return (await device.download(dtable)) as Float32Array;
    };
    const found = await made();
    const expected = new Float64Array(vocabulary * hidden);
    values.forEach((value, i) => (expected[ids[Math.floor(i / hidden)]! * hidden + (i % hidden)]! += value));
    expect(excess(found, expected, () => rows * 4 * epsilon)).toBeLessThanOrEqual(0);
    expect(await made()).toEqual(found);
    device.close();
  });
});

describe('sums', () => {
  it.each([1, 3, 8191, 8193, 20000])('of %d squares agree with float64 to the last bits', (length) => {
    const x = seededArray(length, 4);
    const total = onEverySchedule((bench) => {
      const count = blocks(length, 8192);
      const partial = bench.empty(count * 8);
      const to = bench.doubles([0.5]);
      bench.launch('sums', 'sum_squares', [count], { partial, x: bench.floats(x), length });
      bench.launch('sums', 'add_partials', [1], { total: to, partial, count });
      return bench.readDoubles(to, 1)[0]!;
    });
    const expected = x.reduce((sum, v) => sum + v * v, 0.5);
    expect(Math.abs(total - expected)).toBeLessThanOrEqual(1e-14 * expected * Math.log2(length + 2));
  });

  it('of columns, a slice at a time', () => {
    const [rows, columns, stride, sliceRows] = [9, 130, 136, 4];
    const x = roundToBfloat16(seededArray(rows * columns, 5));
    const sums = onEverySchedule((bench) => {
      const partial = bench.empty(3 * columns * 4);
      bench.launch('sums', 'column_sum', [2, 3], {
        ...{
          partial,
          x: bench.activations(x, rows, columns, stride),
          rows,
          columns,
          stride,
          slice_rows: sliceRows,
        },
      });
      const to = bench.empty(columns * 4);
      bench.launch('sums', 'sum_slices', [5], { to, partial, slices: 3, columns, adds: 0 });
      return bench.readFloats(to, columns);
    });
    const expected = Float64Array.from({ length: columns }, (_, column) => {
      let sum = 0;
      for (let row = 0; row < rows; row++) sum += x[row * columns + column]!;
      return sum;
    });
    expect(excess(sums, expected, () => rows * rows * epsilon)).toBeLessThanOrEqual(0);
  });

  it('in place, and scaled', () => {
    const [a, b] = [seededArray(300, 6), seededArray(300, 7)];
    const result = onEverySchedule((bench) => {
      const at = bench.floats(a);
      bench.launch('elementwise', 'add_in_place', [2], { accumulator: at, x: bench.floats(b), length: 300 });
      bench.launch('elementwise', 'scale_in_place', [2], { values: at, length: 300, factor: 0.5 });
      return bench.readFloats(at, 300);
    });
    expect(result).toEqual(a.map((v, i) => Math.fround(v + b[i]!) / 2));
  });

  it('conversions round to nearest even, with a factor, and widen', () => {
    const [rows, columns, stride] = [3, 17, 24];
    const b = seededArray(rows * columns, 9);
    const result = onEverySchedule((bench) => {
      const rounded = bench.emptyActivations(rows, stride);
      bench.launch('elementwise', 'round_matrix', [1], {
        ...{
          to: rounded,
          from: bench.floats(b),
          rows,
          columns,
          to_stride: stride,
          from_stride: columns,
          factor: 2,
        },
      });
      const copied = bench.emptyActivations(rows, stride);
      bench.launch('elementwise', 'copy_matrix', [1], {
        ...{ to: copied, from: rounded, rows, columns, to_stride: stride, from_stride: stride },
      });
      const wide = bench.empty(rows * columns * 4);
      bench.launch('elementwise', 'widen_matrix', [1], {
        ...{ to: wide, from: copied, rows, columns, to_stride: columns, from_stride: stride },
      });
      return bench.readFloats(wide, rows * columns);
    });
    expect(result).toEqual(roundToBfloat16(b.map((v) => 2 * v)));
  });
});

describe('dropout', () => {
  it.each([
    [2, 5, 3],
    [3, 4, 8],
  ])('of %d sequences of %d x %d draws the mask that the host draws', (sequences, time, features) => {
    const place = { version: 2, seed: 2 ** 40 + 7, step: 11, micro: 0, firstSequence: 5 } as const;
    const dropout = { share: 0.3, place };
    const length = sequences * time * features;
    const expected = new Float32Array(length);
    dropoutMask(expected, dropout, { index: 3, inFeatures: features, name: 'layer' } as Layer, time);
    const mask = onEverySchedule((bench) => {
      const at = bench.empty(4 * length);
      bench.launch('elementwise', 'dropout_mask', [1], {
        ...{ mask: at, place: bench.ints([5, 11]), length },
        ...{ sequence_length: time * features, layer: 3 },
        ...{ key_low: 7, key_high: 256, threshold: Math.ceil(0.3 * 2 ** 32), kept: 1 / 0.7 },
      });
      return bench.readFloats(at, length);
    });
    expect(mask).toEqual(expected);
    expect(new Set(mask).size).toBe(2);
  });
});

describe('AdamW', () => {
  const length = 300;
  const options = { learning_rate: 0.01, beta1: 0.9, rest1: 0.1, beta2: 0.99, rest2: 0.01, epsilon: 1e-8 };
  const corrected = { inverse1: 1 / (1 - 0.9 ** 3), inverse2: 1 / (1 - 0.99 ** 3), weight_decay: 0.1 };
  const [parameter, gradient, first] = [10, 11, 12].map((seed) =>
    seededArray(length, seed),
  ) as Float32Array[];
  const second = seededArray(length, 13).map((v) => v * v);
  /** In the layout of struct Member. */
  const membersOf = (bench: Bench, ...members: Record<string, number>[]) => {
    const names = [
      'parameter',
      'gradient',
      'first',
      'first_scales',
      'second',
      'second_scales',
      'rounded',
      'stride',
    ];
    const words = members.flatMap((member) => names.map((name) => BigInt(member[name] ?? 0)));
    return bench.bytes(new Uint8Array(BigUint64Array.from(words).buffer));
  };
  const update = (bench: Bench, result: number[], normMax: number) => {
    const at = [parameter!, first!, second].map((values) => bench.floats(values));
    const own = { parameter: at[0]!, first: at[1]!, second: at[2]!, gradient: bench.floats(gradient!) };
    bench.launch('adamw', 'adamw', [blocks(length)], {
      ...{ members: membersOf(bench, own), columns: 1 },
      ...{ result: bench.doubles(result), length, ...options, ...corrected, norm_max: normMax },
    });
    return at.map((address) => bench.readFloats(address, length));
  };
  const expected = (clip: number) => {
    const m = Float64Array.from(first!, (v, i) => 0.9 * v + 0.1 * clip * gradient![i]!);
    const v = Float64Array.from(second, (value, i) => 0.99 * value + 0.01 * (clip * gradient![i]!) ** 2);
    const p = Float64Array.from(
      parameter!,
      (value, i) =>
        value -
        0.01 * (0.1 * value + (m[i]! * corrected.inverse1) / (Math.sqrt(v[i]! * corrected.inverse2) + 1e-8)),
    );
    return [p, m, v];
  };

  it.each([
    ['below the limit as they are', 4, 3, 1],
    ['above it scaled to it', 16, 1, 0.25],
  ])('takes gradients whose norm is %s', (_, squares, normMax, clip) => {
    const actual = onEverySchedule((bench) => update(bench, [1, 1, squares], normMax));
    expected(clip).forEach((values, i) =>
      expect(
        excess(actual[i]!, values, (at) => 16 * epsilon * (Math.abs(values[at]!) + 0.1)),
      ).toBeLessThanOrEqual(0),
    );
  });

  it('of two parameters at once, one of which is rounded into rows that lie apart', () => {
    const [columns, stride] = [30, 40];
    const { values, rounded, other } = onEverySchedule((bench) => {
      const of = (from: Float32Array) => ({
        ...{ parameter: bench.floats(from), gradient: bench.floats(gradient!) },
        ...{ first: bench.floats(first!), second: bench.floats(second) },
      });
      const [one, two] = [of(parameter!), of(first!)];
      const to = bench.emptyActivations(length / columns, stride);
      bench.launch('adamw', 'adamw', [blocks(length), 2], {
        ...{ members: membersOf(bench, { ...one, rounded: to, stride }, two), columns, length },
        ...{ result: bench.doubles([1, 1, 4]), ...options, ...corrected, norm_max: 3 },
      });
      return {
        values: bench.readFloats(one.parameter, length),
        rounded: bench.readActivations(to, length / columns, columns, stride),
        other: bench.readFloats(two.parameter, length),
      };
    });
    const within = (at: number) => 16 * epsilon * (Math.abs(expected(1)[0]![at]!) + 0.1);
    expect(excess(values, expected(1)[0]!, within)).toBeLessThanOrEqual(0);
    expect(rounded).toEqual(roundToBfloat16(values));
    expect(other).not.toEqual(values);
  });

  it.each([
    ['the loss', [NaN, NaN, 1]],
    ['the norm', [1, 1, Infinity]],
    ['a negative infinite loss', [-Infinity, 1, 1]],
  ])('changes nothing where %s is not finite', (_, result) => {
    const actual = onEverySchedule((bench) => update(bench, result, 1));
    expect(actual).toEqual([parameter, first, second]);
  });

  it('with moments in eight bits, forgets less than a cell and never the second moment of what has one', () => {
    const scales = blocks(length);
    const steps = 3;
    const actual = onEverySchedule((bench) => {
      const at = {
        parameter: bench.floats(parameter!),
        first: bench.bytes(new Uint8Array(length)),
        first_scales: bench.floats(new Float32Array(scales)),
        second: bench.bytes(new Uint8Array(length)),
        second_scales: bench.floats(new Float32Array(scales)),
      };
      const members = membersOf(bench, { ...at, gradient: bench.floats(gradient!) });
      for (let step = 1; step <= steps; step++)
        bench.launch('adamw', 'coded_adamw', [scales], {
          ...{ members, columns: 1, result: bench.doubles([1, 1, 1]), length, ...options },
          ...{
            inverse1: 1 / (1 - 0.9 ** step),
            inverse2: 1 / (1 - 0.99 ** step),
            weight_decay: 0,
            norm_max: 2,
          },
        });
      return {
        parameter: bench.readFloats(at.parameter, length),
        second: bench.readBytes(at.second, length),
        scales: bench.readFloats(at.second_scales, scales),
      };
    });
    // With a constant gradient Adam moves every parameter by the rate, up to the resolution of the codes.
    const moved = actual.parameter.map((v, i) => (parameter![i]! - v) * Math.sign(gradient![i]!));
    const large = moved.filter((_, i) => Math.abs(gradient![i]!) > 0.3);
    expect(Math.max(...large)).toBeLessThan(0.035);
    expect(Math.min(...large)).toBeGreaterThan(0.025);
    expect(actual.second.every((code, i) => (gradient![i] === 0 ? code === 0 : code > 0))).toBe(true);
    const largest = (from: number, to: number) => Math.max(...gradient!.slice(from, to).map((g) => g * g));
    // The largest entry of a block is coded exactly.
    const decayed = 0.01 * (1 + 0.99 + 0.99 ** 2);
    expect(actual.scales[0]! / (largest(0, 256) * decayed)).toBeCloseTo(1, 5);
    expect(actual.scales[1]! / (largest(256, length) * decayed)).toBeCloseTo(1, 5);
  });
});
