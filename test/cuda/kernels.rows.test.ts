import { describe, expect, it } from 'vitest';
import { epsilon, excess, roundToBfloat16, seededArray } from '../engine/nativeReference.js';
import { fromBfloat16, onEverySchedule, unitOf, type Activation } from './everySchedule.js';

const activations: Activation[] = ['bf16', 'float'];
/** No codes in e4m3 wanted. */
const noCodes = { codes: 0, scales: 0, codes_columns: 0 };
const strideOf = (columns: number) => Math.ceil(columns / 8) * 8;
/** Values rounded to the type in which the card stores them. */
const held = (values: Float32Array, activation: Activation) =>
  activation === 'float' ? values : roundToBfloat16(values);
const sum = (length: number, term: (i: number) => number) => {
  let total = 0;
  for (let i = 0; i < length; i++) total += term(i);
  return total;
};

/** Inputs as float32 activations, and in the type of a half's state. */
const inputs = activations.flatMap((activation) => activations.map((input) => [input, activation] as const));

describe.each(inputs)('RMSNorm of %s that makes %s', (input, activation) => {
  it.each([
    [1, 1],
    [3, 17],
    [9, 8],
    [17, 264],
  ])('%d rows of %d agree with float64, forward and backward', (rows, dim) => {
    const stride = strideOf(dim);
    const x = held(seededArray(rows * dim, 1, 3), input);
    const options = { definitions: [`INPUT=${input}`] };
    const dy = held(seededArray(rows * dim, 2), activation);
    const residual = seededArray(rows * dim, 3);
    const gain = seededArray(dim, 4, 2);
    const eps = 1e-5;
    const sliceRows = 4;
    const slices = Math.ceil(rows / sliceRows);
    const result = onEverySchedule((bench) => {
      const xAt = input === 'bf16' ? bench.bf16(x) : bench.floats(x);
      const dyAt = bench.activations(dy, rows, dim, stride);
      const kept = bench.empty(rows * dim * 2);
      const [y, dx, rstd] = [
        bench.emptyActivations(rows, stride),
        bench.empty(rows * dim * 4),
        bench.empty(rows * 4),
      ];
      const norm = { x: xAt, rstd, rows, dim };
      const gainAt = bench.floats(gain);
      const grid = [Math.ceil(rows / 8)] as const;
      const forward = { ...norm, kept, y, gain: gainAt, y_stride: stride, epsilon: eps, ...noCodes };
      bench.launch('rms_norm', 'rms_norm_forward', grid, forward, options);
      const backward = { ...norm, dx, dy: dyAt, residual: bench.floats(residual), gain: gainAt };
      bench.launch('rms_norm', 'rms_norm_backward', grid, { ...backward, dy_stride: stride }, options);
      const partial = bench.empty(slices * dim * 4);
      const dgain = bench.empty(dim * 4);
      const ofGain = { ...norm, partial, dy: dyAt, dy_stride: stride, slice_rows: sliceRows };
      bench.launch('rms_norm', 'rms_norm_gain', [Math.ceil(dim / 128), slices], ofGain, options);
      const sums = { to: dgain, partial, slices, columns: dim };
      bench.launch('sums', 'sum_slices', [Math.ceil(dim / 32)], { ...sums, adds: 0 });
      const once = bench.readFloats(dgain, dim);
      bench.launch('sums', 'sum_slices', [Math.ceil(dim / 32)], { ...sums, adds: 1 });
      const apart = {
        kept: fromBfloat16(bench.read(new Uint16Array(rows * dim), kept)),
        y: bench.readActivations(y, rows, dim, stride),
        dx: bench.readFloats(dx, rows * dim),
        dgain: once,
        twice: bench.readFloats(dgain, dim),
      };
      if (dim % 8 !== 0) return { ...apart, both: null };
      const [again, rounded] = [bench.empty(rows * dim * 4), bench.empty(rows * (dim + 8) * 2)];
      const [bothPartial, bothGain] = [bench.empty(slices * dim * 4), bench.empty(dim * 4)];
      bench.launch(
        'rms_norm',
        'rms_norm_both',
        [slices],
        {
          ...{
            ...norm,
            dx: again,
            rounded,
            partial: bothPartial,
            dy: dyAt,
            residual: bench.floats(residual),
          },
          ...{ gain: gainAt, dy_stride: stride, rounded_stride: dim + 8, slice_rows: sliceRows, ...noCodes },
        },
        { ...options, dynamicSharedBytes: 8 * dim * 4 },
      );
      const bothSums = { to: bothGain, partial: bothPartial, slices, columns: dim, adds: 0 };
      bench.launch('sums', 'sum_slices', [Math.ceil(dim / 32)], bothSums);
      const words = bench.read(new Uint16Array(rows * (dim + 8)), rounded);
      const both = {
        dx: bench.readFloats(again, rows * dim),
        rounded: fromBfloat16(words).filter((_, i) => i % (dim + 8) < dim),
        dgain: bench.readFloats(bothGain, dim),
      };
      return { ...apart, both };
    }, activation);

    expect(result.kept).toEqual(roundToBfloat16(x));
    const rstd = Float64Array.from(
      { length: rows },
      (_, row) => 1 / Math.sqrt(sum(dim, (i) => x[row * dim + i]! ** 2) / dim + eps),
    );
    const y = Float64Array.from(x, (v, i) => v * rstd[Math.floor(i / dim)]! * gain[i % dim]!);
    const own = unitOf(activation) + (dim + 8) * epsilon;
    expect(excess(result.y, y, (i) => own * Math.abs(y[i]!))).toBeLessThanOrEqual(0);
    const along = (row: number, size = (v: number) => v) =>
      (sum(dim, (i) => size(dy[row * dim + i]! * gain[i]! * x[row * dim + i]!)) * rstd[row]! ** 2) / dim;
    const dx = Float64Array.from(x, (v, i) => {
      const row = Math.floor(i / dim);
      return residual[i]! + rstd[row]! * (dy[i]! * gain[i % dim]! - v * along(row));
    });
    const magnitude = (i: number) => {
      const row = Math.floor(i / dim);
      return (
        Math.abs(residual[i]!) +
        rstd[row]! * (Math.abs(dy[i]! * gain[i % dim]!) + Math.abs(x[i]! * along(row, Math.abs)))
      );
    };
    expect(excess(result.dx, dx, (i) => (dim + 8) * epsilon * magnitude(i))).toBeLessThanOrEqual(0);
    const term = (row: number, i: number) => dy[row * dim + i]! * x[row * dim + i]! * rstd[row]!;
    const dgain = Float64Array.from({ length: dim }, (_, i) => sum(rows, (row) => term(row, i)));
    const size = (i: number) => sum(rows, (row) => Math.abs(term(row, i)));
    expect(excess(result.dgain, dgain, (i) => (rows + dim + 8) * epsilon * size(i))).toBeLessThanOrEqual(0);
    expect(result.twice).toEqual(result.dgain.map((v) => 2 * v));
    if (result.both === null) return;
    const { both } = result;
    expect(excess(both.dx, dx, (i) => (dim + 8) * epsilon * magnitude(i))).toBeLessThanOrEqual(0);
    expect(both.rounded).toEqual(roundToBfloat16(both.dx));
    expect(excess(both.dgain, dgain, (i) => (rows + dim + 8) * epsilon * size(i))).toBeLessThanOrEqual(0);
  });
});

describe.each(activations)('rotary embedding of %s', (activation) => {
  it.each([
    [3, 2, 2, 0, 'without documents'],
    [17, 3, 10, 5, 'without documents'],
    [17, 3, 10, 0, 'from where their documents begin'],
  ])('%d rows of %d heads of %d turn, and turn back, from %d on, %s', (...shape) => {
    const [rows, heads, headDim, firstPosition, documents] = shape;
    const width = heads * headDim;
    const stride = strideOf(width + 3); // as with adjacent columns
    const time = 5;
    const half = headDim / 2;
    const x = held(seededArray(rows * width, 5), activation);
    const angles = seededArray((firstPosition + time) * half, 6, 3);
    const cos = angles.map(Math.cos);
    const sin = angles.map(Math.sin);
    const begins = Int32Array.from({ length: rows }, (_, row) =>
      documents === 'without documents' || row % time < 2 ? 0 : 2,
    );
    const [turned, back] = onEverySchedule((bench) => {
      const at = bench.activations(x, rows, width, stride);
      const parameters = {
        x: at,
        begins: documents === 'without documents' ? 0 : bench.ints([...begins]),
        cosines: bench.floats(cos),
        sines: bench.floats(sin),
        rows,
        heads,
        head_dim: headDim,
        stride,
        time,
        first_position: firstPosition,
      };
      const grid = [Math.ceil((rows * heads * half) / 256)] as const;
      bench.launch('rotary', 'rotary', grid, { ...parameters, sign: 1 });
      const forward = bench.readActivations(at, rows, width, stride);
      bench.launch('rotary', 'rotary', grid, { ...parameters, sign: -1 });
      return [forward, bench.readActivations(at, rows, width, stride)];
    }, activation);
    const expected = Float64Array.from(x, (v, i) => {
      const row = Math.floor(i / width);
      const inHead = i % headDim;
      const at = (firstPosition + (row % time) - begins[row]!) * half + (inHead % half);
      return inHead < half ? v * cos[at]! - x[i + half]! * sin[at]! : v * cos[at]! + x[i - half]! * sin[at]!;
    });
    const unit = unitOf(activation);
    expect(excess(turned!, expected, (i) => unit * Math.abs(expected[i]!) + 4 * epsilon)).toBeLessThanOrEqual(
      0,
    );
    expect(excess(back!, x, () => 4 * unit + 8 * epsilon)).toBeLessThanOrEqual(0);
  });
});

describe.each(activations)('SwiGLU of %s', (activation) => {
  it.each([
    [1, 1],
    [3, 17],
    [5, 64],
  ])('%d rows of %d agree with float64, forward and backward', (rows, width) => {
    const upOffset = strideOf(width);
    const stride = 2 * upOffset;
    const gate = held(seededArray(rows * width, 7, 8), activation);
    const up = held(seededArray(rows * width, 8), activation);
    const dh = held(seededArray(rows * width, 9), activation);
    const result = onEverySchedule((bench) => {
      const bytes = bench.activationBytes;
      const gateUp = bench.emptyActivations(rows, stride);
      const beside = (values: Float32Array, offset: number) => {
        const from = bench.activations(values, rows, width, upOffset);
        for (let row = 0; row < rows; row++)
          bench.card.copy(
            gateUp + (row * stride + offset) * bytes,
            from + row * upOffset * bytes,
            width * bytes,
          );
      };
      beside(gate, 0);
      beside(up, upOffset);
      const [h, again, back] = [upOffset, upOffset, stride].map((s) => bench.emptyActivations(rows, s));
      const shape = { gate_up: gateUp, rows, width, h_stride: upOffset, stride, up_offset: upOffset };
      const grid = [Math.ceil((rows * Math.ceil(width / 8)) / 256)] as const;
      bench.launch('swiglu', 'swiglu_forward', grid, { ...shape, h: h! });
      bench.launch('swiglu', 'swiglu_backward', grid, {
        ...shape,
        d_gate_up: back!,
        h: again!,
        dh: bench.activations(dh, rows, width, upOffset),
      });
      const read = (at: number, s: number) => bench.readActivations(at, rows, width, s);
      return {
        h: read(h!, upOffset),
        again: read(again!, upOffset),
        dgate: read(back!, stride),
        dup: read(back! + upOffset * bytes, stride),
      };
    }, activation);
    const unit = unitOf(activation) + 16 * epsilon;
    const sigmoid = (v: number) => 1 / (1 + Math.exp(-v));
    const agree = (actual: Float32Array, expected: Float64Array, scale: (i: number) => number) =>
      expect(
        excess(actual, expected, (i) => unit * (Math.abs(expected[i]!) + scale(i)) + 1e-30),
      ).toBeLessThanOrEqual(0);
    agree(
      result.h,
      Float64Array.from(gate, (g, i) => g * sigmoid(g) * up[i]!),
      () => 0,
    );
    expect(result.again).toEqual(result.h);
    agree(
      result.dup,
      Float64Array.from(gate, (g, i) => dh[i]! * g * sigmoid(g)),
      () => 0,
    );
    // The two terms of the derivative may cancel.
    agree(
      result.dgate,
      Float64Array.from(gate, (g, i) => dh[i]! * up[i]! * sigmoid(g) * (1 + g * (1 - sigmoid(g)))),
      (i) => Math.abs(dh[i]! * up[i]!),
    );
  });
});
