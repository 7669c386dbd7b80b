import { describe, expect, it } from 'vitest';
import { epsilon, excess, roundToBfloat16, seededArray } from '../engine/nativeReference.js';
import { onEverySchedule, onOneSchedule, unitOf, type Bench } from './everySchedule.js';

interface Shape {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  dim: number;
  /** Starts of documents in each sequence; absent: one at 0. */
  begins?: readonly (readonly number[])[];
}

const unit = unitOf('bf16');
const tileBytes = (rows: number, dim: number) => rows * (Math.ceil(dim / 16) * 16 + 8) * 2;
const scaleOf = ({ dim }: Shape) => 1 / Math.sqrt(dim);

/** [batch * queries], as kernels read them: begin and end of each position's document. */
function documentsOf({ batch, queries, begins }: Shape): { begins: Int32Array; ends: Int32Array } | null {
  if (begins === undefined) return null;
  const [own, ends] = [new Int32Array(batch * queries), new Int32Array(batch * queries)];
  for (let b = 0; b < batch; b++)
    for (const [index, begin] of begins[b]!.entries()) {
      const end = begins[b]![index + 1] ?? queries;
      own.fill(begin, b * queries + begin, b * queries + end);
      ends.fill(end, b * queries + begin, b * queries + end);
    }
  return { begins: own, ends };
}

/** In float64, with the sums of magnitudes, to which rounding errors are proportional. */
function reference(shape: Shape, q: Float32Array, k: Float32Array, v: Float32Array, dout: Float32Array) {
  const { batch, queries, keys, heads, kvHeads, dim } = shape;
  const zeros = (of: ArrayLike<number>) => new Float64Array(of.length);
  const result = {
    out: zeros(q),
    dq: zeros(q),
    dk: zeros(k),
    dv: zeros(v),
    lse: new Float64Array(batch * heads * queries),
  };
  const size = { out: zeros(q), dq: zeros(q), dk: zeros(k), dv: zeros(v) };
  const group = heads / kvHeads;
  const documents = documentsOf(shape);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < queries; i++) {
        const qAt = ((b * queries + i) * heads + h) * dim;
        const first = documents?.begins[b * queries + i] ?? 0;
        const kAt = (j: number) => ((b * keys + first + j) * kvHeads + Math.floor(h / group)) * dim;
        const dot = (x: Float32Array, at: number, y: Float32Array, other: number) => {
          let sum = 0;
          for (let d = 0; d < dim; d++) sum += x[at + d]! * y[other + d]!;
          return sum;
        };
        const seen = i + keys - queries + 1 - first;
        const scores = Array.from({ length: seen }, (_, j) => scaleOf(shape) * dot(q, qAt, k, kAt(j)));
        const most = Math.max(...scores);
        const total = scores.reduce((sum, s) => sum + Math.exp(s - most), 0);
        result.lse[(b * heads + h) * queries + i] = most + Math.log(total);
        const p = scores.map((s) => Math.exp(s - most) / total);
        const dp = scores.map((_, j) => dot(dout, qAt, v, kAt(j)));
        const delta = p.reduce((sum, value, j) => sum + value * dp[j]!, 0);
        // `delta` is computed from rounded outputs times dout.
        let deltaSize = 0;
        for (let d = 0; d < dim; d++) {
          let out = 0;
          p.forEach((value, j) => (out += value * Math.abs(v[kAt(j) + d]!)));
          deltaSize += out * Math.abs(dout[qAt + d]!);
        }
        p.forEach((value, j) => {
          const ds = value * (dp[j]! - delta) * scaleOf(shape);
          const dsSize = value * (Math.abs(dp[j]!) + deltaSize) * scaleOf(shape);
          for (let d = 0; d < dim; d++) {
            result.out[qAt + d]! += value * v[kAt(j) + d]!;
            size.out[qAt + d]! += value * Math.abs(v[kAt(j) + d]!);
            result.dq[qAt + d]! += ds * k[kAt(j) + d]!;
            size.dq[qAt + d]! += dsSize * Math.abs(k[kAt(j) + d]!);
            result.dk[kAt(j) + d]! += ds * q[qAt + d]!;
            size.dk[kAt(j) + d]! += dsSize * Math.abs(q[qAt + d]!);
            result.dv[kAt(j) + d]! += value * dout[qAt + d]!;
            size.dv[kAt(j) + d]! += value * Math.abs(dout[qAt + d]!);
          }
        });
      }
  return { result, size };
}

/** Addresses of zero if there are none. */
function givenDocuments(bench: Bench, shape: Shape): { begins: number; ends: number } {
  const found = documentsOf(shape);
  return found === null
    ? { begins: 0, ends: 0 }
    : { begins: bench.ints([...found.begins]), ends: bench.ints([...found.ends]) };
}

function attend(shape: Shape, isTrained: boolean, onSchedules: typeof onEverySchedule) {
  const { batch, queries, keys, heads, kvHeads, dim } = shape;
  const [qWidth, kWidth] = [heads * dim, kvHeads * dim];
  const draw = (rows: number, width: number, seed: number, scale: number) =>
    roundToBfloat16(seededArray(batch * rows * width, seed, scale));
  const [q, k, v, dout] = [
    draw(queries, qWidth, 1, 2),
    draw(keys, kWidth, 2, 2),
    draw(keys, kWidth, 3, 1),
    draw(queries, qWidth, 4, 1),
  ];
  const group = heads / kvHeads;
  const scale = scaleOf(shape);
  const definitions = [`HEAD_DIM=${dim}`];
  const actual = onSchedules((bench) => {
    // Adjacent columns, as from one product; in the backward pass keys have no rows of their own.
    const stride = qWidth + 2 * kWidth;
    const place = (values: Float32Array, rows: number, width: number, to: number) => {
      const from = bench.activations(values, batch * rows, width, width);
      for (let row = 0; row < batch * rows; row++)
        bench.card.copy(to + 2 * row * stride, from + 2 * row * width, 2 * width);
    };
    const all = bench.emptyActivations(batch * keys, stride);
    const qs = queries === keys ? all : bench.emptyActivations(batch * queries, stride);
    const [kAt, vAt] = [all + 2 * qWidth, all + 2 * (qWidth + kWidth)];
    place(q, queries, qWidth, qs);
    place(k, keys, kWidth, kAt);
    place(v, keys, kWidth, vAt);
    const out = bench.emptyActivations(batch * queries, qWidth);
    const lse = bench.empty(batch * heads * queries * 4);
    const tiles = Math.ceil(queries / 64);
    const { begins, ends } = givenDocuments(bench, shape);
    bench.launch(
      'attention',
      'attention_forward',
      [tiles, heads, batch],
      {
        ...{ out, log_sum_exp: lse, q: qs, k: kAt, v: vAt, queries, keys, heads, group },
        ...{ q_stride: stride, kv_stride: stride, out_stride: qWidth, begins, scale },
      },
      { definitions, dynamicSharedBytes: 5 * tileBytes(64, dim) },
    );
    const made = {
      out: bench.readActivations(out, batch * queries, qWidth, qWidth),
      lse: bench.readFloats(lse, batch * heads * queries),
    };
    if (!isTrained) return { ...made, dq: null, dk: null, dv: null };
    const delta = bench.empty(batch * heads * queries * 4);
    const douts = bench.activations(dout, batch * queries, qWidth, qWidth);
    bench.launch(
      'attention',
      'attention_delta',
      [Math.ceil((batch * queries * heads) / 8)],
      { delta, out, dout: douts, rows: batch * queries, time: queries, heads, out_stride: qWidth },
      { definitions },
    );
    const d = bench.emptyActivations(batch * keys, stride);
    const parameters = {
      ...{ dq: d, dk: d + 2 * qWidth, dv: d + 2 * (qWidth + kWidth), q: qs, k: kAt, v: vAt, dout: douts },
      ...{
        log_sum_exp: lse,
        delta,
        begins,
        ends,
        time: queries,
        heads,
        group,
        stride,
        out_stride: qWidth,
        scale,
      },
    };
    bench.launch('attention', 'attention_backward_q', [tiles, heads, batch], parameters, {
      definitions,
      dynamicSharedBytes: 4 * tileBytes(64, dim),
    });
    bench.launch('attention', 'attention_backward_kv', [tiles, kvHeads, batch], parameters, {
      definitions,
      dynamicSharedBytes: 2 * tileBytes(64, dim) + 2 * tileBytes(32, dim) + 2 * 32 * 4,
    });
    const read = (at: number, width: number) => bench.readActivations(at, batch * keys, width, stride);
    return {
      ...made,
      dq: read(parameters.dq, qWidth),
      dk: read(parameters.dk, kWidth),
      dv: read(parameters.dv, kWidth),
    };
  });
  return { actual, expected: reference(shape, q, k, v, dout) };
}

function expectAgreement(shape: Shape, isTrained: boolean, onSchedules = onEverySchedule): void {
  const { actual, expected } = attend(shape, isTrained, onSchedules);
  const { result, size } = expected;
  expect(
    excess(actual.lse, result.lse, (i) => 64 * epsilon * (Math.abs(result.lse[i]!) + 4)),
  ).toBeLessThanOrEqual(0);
  // Weights are rounded to bfloat16 once, and results again.
  expect(
    excess(actual.out, result.out, (i) => unit * (Math.abs(result.out[i]!) + 1.1 * size.out[i]!)),
  ).toBeLessThanOrEqual(0);
  if (!isTrained) return;
  for (const of of ['dq', 'dk', 'dv'] as const)
    expect(
      excess(actual[of]!, result[of], (i) => unit * (Math.abs(result[of][i]!) + 2.2 * size[of][i]!) + 1e-7),
      of,
    ).toBeLessThanOrEqual(0);
}

const whole = (batch: number, time: number, heads: number, kvHeads: number, dim: number): Shape => ({
  ...{ batch, queries: time, keys: time, heads, kvHeads, dim },
});

/** Documents of one position and of several tiles, with boundaries at tile edges and within, different in each sequence. */
const masked: Shape[] = [
  { ...whole(2, 5, 2, 1, 8), begins: [[0], [0, 1, 2, 4]] },
  {
    ...whole(2, 140, 2, 1, 16),
    begins: [
      [0, 1, 63, 64, 65, 100, 139],
      [0, 128],
    ],
  },
  { ...whole(1, 200, 1, 1, 24), begins: [[0, 10, 70, 133, 134, 197]] },
];

describe('causal attention agrees with float64, forward and backward', () => {
  it.each([
    whole(1, 1, 1, 1, 8),
    whole(2, 3, 2, 1, 8),
    whole(1, 17, 1, 1, 128),
    whole(2, 63, 1, 1, 16),
    whole(1, 65, 4, 2, 16),
    whole(1, 18, 1, 1, 32),
    whole(1, 17, 1, 1, 64),
    whole(1, 33, 2, 1, 80),
    whole(1, 130, 1, 1, 16),
    ...masked,
  ])('$batch x $queries, $heads heads ($kvHeads) of $dim', (shape) => {
    expectAgreement(shape, true);
  });

  it.each([
    { batch: 1, queries: 1, keys: 70, heads: 2, kvHeads: 1, dim: 16 },
    { batch: 1, queries: 3, keys: 64, heads: 1, kvHeads: 1, dim: 16 },
  ])('$queries queries behind $keys keys, as text is written', (shape) => {
    expectAgreement(shape, false);
  });
});

/** Each document spans several tiles, so that tiles of others are skipped, at positions up to the longest sequence. */
const longest = 16_384;
const documentStarts = Array.from({ length: 128 }, (_, i) => 128 * i + (i % 3));

/** On the model a pair of tiles takes tens of milliseconds: `npm run test:full` computes the second list. */
const isLong = process.env.TEST_CARD_LONG === '1';
const lengths: [shape: Shape, isTrained: boolean][] = [
  [whole(1, 700, 1, 1, 16), true],
  [{ batch: 1, queries: 3, keys: longest, heads: 1, kvHeads: 1, dim: 16 }, false],
  ...(isLong
    ? ([
        [whole(1, 3000, 1, 1, 16), true],
        [whole(1, 600, 4, 2, 64), true],
        [whole(1, 200, 2, 1, 48), true],
        [whole(1, 200, 2, 1, 96), true],
        [{ ...whole(1, longest, 1, 1, 16), begins: [documentStarts] }, true],
      ] satisfies [Shape, boolean][])
    : []),
];

describe('attention over long sequences agrees with float64', () => {
  it.each(lengths)('$batch x $queries of $keys, $heads heads ($kvHeads) of $dim', (shape, isTrained) => {
    expectAgreement(shape, isTrained, onOneSchedule);
  });
});

describe('attention in true float32 agrees with float64', () => {
  it.each([
    { ...whole(1, 1, 1, 1, 2) },
    { ...whole(2, 3, 2, 1, 10) },
    { ...whole(1, 33, 4, 2, 16) },
    { ...whole(1, 65, 1, 1, 80) },
    ...masked,
    { batch: 1, queries: 2, keys: 40, heads: 2, kvHeads: 1, dim: 34 },
  ])('$batch x $queries of $keys, $heads heads ($kvHeads) of $dim', (shape) => {
    const { batch, queries, keys, heads, kvHeads, dim } = shape;
    const [qWidth, kWidth] = [heads * dim, kvHeads * dim];
    const draw = (rows: number, width: number, seed: number) => seededArray(batch * rows * width, seed, 2);
    const [q, k, v, dout] = [
      draw(queries, qWidth, 1),
      draw(keys, kWidth, 2),
      draw(keys, kWidth, 3),
      draw(queries, qWidth, 4),
    ];
    const actual = onEverySchedule((bench) => {
      const [out, lse] = [bench.empty(4 * q.length), bench.empty(4 * batch * heads * queries)];
      const given = {
        q: bench.floats(q),
        k: bench.floats(k),
        v: bench.floats(v),
        log_sum_exp: lse,
        heads,
        dim,
      };
      const common = { ...given, out, group: heads / kvHeads, q_stride: qWidth, kv_stride: kWidth };
      const ends = { ...common, out_stride: qWidth, scale: scaleOf(shape) };
      const launch = (kernel: string, count: number, parameters: Record<string, number>) =>
        bench.launch('attention_float', kernel, [Math.ceil(queries / 4), count, batch], parameters);
      const { begins, ends: documentEnds } = givenDocuments(bench, shape);
      launch('attention_float_forward', heads, { ...ends, begins, queries, keys });
      const made = {
        out: bench.readFloats(out, q.length),
        lse: bench.readFloats(lse, batch * heads * queries),
      };
      if (queries < keys) return { ...made, dq: null, dk: null, dv: null };
      const [dq, dk, dv] = [q, k, v].map((of) => bench.empty(4 * of.length)) as [number, number, number];
      const delta = bench.empty(4 * batch * heads * queries);
      const back = {
        ...ends,
        begins,
        ends: documentEnds,
        dq,
        dk,
        dv,
        delta,
        dout: bench.floats(dout),
        time: queries,
      };
      launch('attention_float_backward_q', heads, back);
      launch('attention_float_backward_kv', kvHeads, back);
      const read = (at: number, of: Float32Array) => bench.readFloats(at, of.length);
      return { ...made, dq: read(dq, q), dk: read(dk, k), dv: read(dv, v) };
    });
    const { result, size } = reference(shape, q, k, v, dout);
    const small = (dim + keys + 64) * epsilon;
    expect(
      excess(actual.lse, result.lse, (i) => 4 * small * (Math.abs(result.lse[i]!) + 4)),
    ).toBeLessThanOrEqual(0);
    expect(excess(actual.out, result.out, (i) => 8 * small * size.out[i]!)).toBeLessThanOrEqual(0);
    for (const of of ['dq', 'dk', 'dv'] as const)
      if (actual[of] !== null)
        expect(
          excess(actual[of], result[of], (i) => 8 * small * size[of][i]! + 1e-7),
          of,
        ).toBeLessThanOrEqual(0);
  });
});
