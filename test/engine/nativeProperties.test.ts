import { afterAll, describe, expect, it } from 'vitest';
import { loadNativeAddon, type PackedBase } from '../../engine/dist/device/cpu/nativeAddon.js';
import { Draw } from './nativeDraw.js';
import { halfProperties } from './nativeHalfProperties.js';
import {
  attention,
  epsilon,
  halfEpsilon,
  headCrossEntropy,
  largest,
  matrix,
  multiply,
  rmsNorm,
  roundToBfloat16,
  transposed,
} from './nativeReference.js';

/**
 * Tests every kernel with random shapes, alignments and numbers of threads against float64. RELORA_TEST_SEED repeats a run,
 * RELORA_TEST_DRAWS makes it longer.
 */
const firstSeed = Number(process.env['RELORA_TEST_SEED'] ?? Date.now() % 1_000_000);
const draws = Number(process.env['RELORA_TEST_DRAWS'] ?? 12);
console.log(`Shapes are drawn from seed ${firstSeed} on`);

const addon = loadNativeAddon();
const { instructionSets } = addon.describe();

afterAll(() => addon.configure({ instructionSet: instructionSets[0]!, threads: 1 }));

/** Each draws arguments, calls its function and checks the results against the definition. */
const properties: Record<string, (draw: Draw) => void> = {
  matmul(draw) {
    const batch = draw.size('batch', 3);
    const [m, n] = [
      draw.size('m', 200, [119, 120, 121, 191, 192, 193]),
      draw.size('n', 140, [127, 128, 129]),
    ];
    const most = Math.max(1, Math.min(1100, Math.floor(3e5 / (batch * m * n))));
    const k = draw.size('k', most, [255, 256, 257, 511, 512, 513, 1023, 1024, 1025]);
    const [transposeA, transposeB] = [draw.of([false, true]), draw.of([false, true])];
    draw.say('transposed', [transposeA, transposeB]);
    const precision = draw.precision();
    const [a, b] = [draw.floats(batch * m * k), draw.floats(batch * k * n)];
    const c = draw.output('c', batch * m * n);
    addon.matmul(c, a, b, { batch, m, n, k, transposeA, transposeB }, precision);
    const operand = (values: Float32Array) => (precision === 'bfloat16' ? roundToBfloat16(values) : values);
    for (let i = 0; i < batch; i++) {
      const left = matrix(operand(a.slice(i * m * k, (i + 1) * m * k)), m, k, transposeA);
      const right = matrix(operand(b.slice(i * k * n, (i + 1) * k * n)), k, n, transposeB);
      const { value, magnitude } = multiply(left, right);
      const part = c.subarray(i * m * n, (i + 1) * m * n);
      draw.agree('c', part, value, (index) => (k + 1) * epsilon * magnitude[index]!);
    }
  },

  linearForward: loraLinear,
  linearBackward: loraLinear,

  mergeAdapter(draw) {
    const [rows, rank, columns] = [draw.size('inFeatures'), draw.size('rank', 40), draw.size('outFeatures')];
    const scale = draw.say('scale', draw.of([0.25, 1, 2, -8]));
    const w = draw.floats(rows * columns, draw.of([1, 1000]));
    const [a, b] = [draw.floats(rows * rank), draw.floats(rank * columns)];
    const merged = draw.output('merged', w.length);
    const { finite, deltaNorm } = addon.mergeAdapter(merged, w, a, b, scale, rows, rank, columns);
    const { value, magnitude } = multiply(matrix(a, rows, rank), matrix(b, rank, columns));
    const expected = value.map((delta, i) => w[i]! + scale * delta);
    const ofDelta = magnitude.map((size) => (rank + 2) * epsilon * Math.abs(scale) * size);
    draw.agree('merged', merged, expected, (i) => 1.01 * epsilon * Math.abs(expected[i]!) + ofDelta[i]!);
    expect(finite).toBe(true);
    draw.agree('deltaNorm', [deltaNorm], [Math.abs(scale) * Math.hypot(...value)], () =>
      Math.hypot(...ofDelta),
    );
  },

  repackBase(draw) {
    const [rows, columns] = [draw.size('inFeatures'), draw.size('outFeatures')];
    const precision = draw.basePrecision();
    const w = draw.floats(rows * columns);
    // Remains of a NaN weight would show.
    const base = addon.packBase(new Float32Array(w.length).fill(NaN), rows, columns, precision);
    addon.repackBase(base, w);
    holdsWeight(draw, base, addon.packBase(w, rows, columns, precision), rows, columns);
  },

  packMerged(draw) {
    const [rows, rank, columns] = [draw.size('inFeatures'), draw.size('rank', 40), draw.size('outFeatures')];
    const scale = draw.say('scale', draw.of([0.25, 1, -8]));
    const precision = draw.basePrecision();
    const w = draw.floats(rows * columns);
    const [a, b] = [draw.floats(rows * rank), draw.floats(rank * columns)];
    const base = addon.packBase(new Float32Array(w.length).fill(NaN), rows, columns, precision);
    addon.packMerged(base, w, a, b, scale, rank);
    const merged = draw.output('merged', w.length);
    addon.mergeAdapter(merged, w, a, b, scale, rows, rank, columns);
    holdsWeight(draw, base, addon.packBase(merged, rows, columns, precision), rows, columns);
  },

  ...halfProperties(addon),

  rmsNormForward: normalize,
  rmsNormBackward: normalize,

  rotary(draw) {
    const [batch, time, heads] = [draw.size('batch', 3), draw.size('time', 40), draw.size('heads', 5)];
    const half = draw.size('headDim / 2', 40);
    const headDim = 2 * half;
    const firstPosition = draw.say('firstPosition', draw.below(9));
    const inverse = draw.say('inverse', draw.of([false, true]));
    const positions = firstPosition + time + draw.below(3);
    const [cos, sin] = [draw.floats(positions * half), draw.floats(positions * half)];
    const x = draw.floats(batch * time * heads * headDim);
    const y = draw.output('y', x.length);
    addon.rotary(y, x, { cos, sin }, { batch, time, heads, headDim, firstPosition }, inverse);
    const terms = Array.from(x, (value, index) => {
      const i = index % headDim;
      const t = firstPosition + (Math.floor(index / (heads * headDim)) % time);
      const at = t * half + (i % half);
      const sign = i < half === inverse ? 1 : -1;
      return [value * cos[at]!, sign * sin[at]! * x[i < half ? index + half : index - half]!] as const;
    });
    draw.agree(
      'y',
      y,
      terms.map(([u, v]) => u + v),
      (i) => 3 * epsilon * (Math.abs(terms[i]![0]) + Math.abs(terms[i]![1])),
    );
  },

  attentionForward: attend,
  attentionBackward: attend,

  swigluForward: swiglu,
  swigluBackward: swiglu,

  embeddingForward(draw) {
    const [rows, vocabulary, dim] = [draw.size('rows', 200), draw.size('vocabulary'), draw.size('dim')];
    const table = draw.floats(vocabulary * dim);
    const ids = draw.ids(rows, 0, vocabulary);
    const y = draw.output('y', rows * dim);
    addon.embeddingForward(y, table, ids, rows, vocabulary, dim);
    const expected = y.map((_, index) => table[ids[Math.floor(index / dim)]! * dim + (index % dim)]!);
    draw.agree('y', y, expected, () => 0);
  },

  embeddingBackward(draw) {
    const [rows, vocabulary, dim] = [draw.size('rows', 200), draw.size('vocabulary'), draw.size('dim')];
    const dy = draw.floats(rows * dim);
    const ids = draw.ids(rows, 0, vocabulary);
    const dtable = draw.output('dtable', vocabulary * dim);
    addon.embeddingBackward(dtable, dy, ids, rows, vocabulary, dim);
    const expected = new Float32Array(dtable.length);
    dy.forEach((value, index) => (expected[ids[Math.floor(index / dim)]! * dim + (index % dim)]! += value));
    draw.agree('dtable', dtable, expected, () => 0);
  },

  headCrossEntropy(draw) {
    const [rows, dim] = [draw.size('rows', 400, [383, 384, 385]), draw.size('dim', 40)];
    const most = Math.max(2, Math.min(300, Math.floor(3e5 / (rows * dim))));
    const vocabulary = draw.size('vocabulary', most, [127, 128, 129, 191, 192, 193]);
    const precision = draw.precision();
    const wanted = draw.say('wanted', draw.of(['losses', 'dx', 'dhead'] as const));
    const [x, head] = [draw.floats(rows * dim), draw.floats(vocabulary * dim)];
    const targets = draw.ids(rows, -1, vocabulary);
    const scale = 1 / rows;
    const losses = draw.output('losses', rows);
    const dx = wanted === 'losses' ? null : draw.output('dx', x.length);
    const dhead = wanted === 'dhead' ? draw.output('dhead', head.length) : null;
    addon.headCrossEntropy(
      losses,
      dx,
      dhead,
      x,
      head,
      targets,
      { rows, hidden: dim, vocabulary, gradientScale: scale, inInt8: false },
      precision,
    );
    const expected = headCrossEntropy(x, head, targets, rows, dim, vocabulary, scale);
    // A logit is a sum of at most `dim` terms below 1; its error is a relative error of the probability.
    const rounding = precision === 'bfloat16' ? halfEpsilon : 0;
    const ofLogit = dim * (2 * rounding + (dim + 1) * epsilon);
    const relative = 2 * ofLogit + 4 * rounding + (vocabulary + dim + 8) * epsilon;
    draw.agree('losses', losses, expected.losses, (i) => relative * (1 + expected.losses[i]!));
    // The gradients of a row's logits add up to at most 2 scale, and are multiplied by elements below 1.
    if (dx !== null) draw.agree('dx', dx, expected.dx, () => 2 * scale * relative);
    if (dhead !== null) {
      draw.agree('dhead', dhead, expected.dhead, () => rows * scale * (2 * relative + rows * epsilon));
    }
  },

  sumSquares(draw) {
    const arrays = Array.from({ length: draw.say('arrays', 1 + draw.below(4)) }, () =>
      draw.floats(draw.size('length', 50_000, [32767, 32768, 32769]), 1e3),
    );
    const all = arrays.flatMap((array) => Array.from(array));
    const expected = all.reduce((sum, value) => sum + value * value, 0);
    draw.agree('the sum', [addon.sumSquares(arrays)], [expected], () => all.length * 2 ** -53 * expected);
  },

  adamWInPlace(draw) {
    const length = draw.size('length', 70_000, [32767, 32768, 32769]);
    const beta1 = draw.say('beta1', draw.of([0, 0.9]));
    const beta2 = draw.say('beta2', draw.of([0.95, 0.999]));
    const step = draw.say('step', 1 + draw.below(1000));
    const options = {
      learningRate: 1e-2,
      beta1,
      beta2,
      epsilon: draw.of([1e-8, 1e-6]),
      weightDecay: draw.of([0, 0.1]),
      correction1: 1 - beta1 ** step,
      correction2: 1 - beta2 ** step,
      gradientScale: draw.of([1, 0.5]),
    };
    const [parameter0, first0, gradient] = [1, 1, 10].map((scale) => draw.floats(length, scale));
    const second0 = draw.floats(length).map(Math.abs);
    const parameter = draw.inPlace('parameter', parameter0!);
    const [first, second] = [draw.inPlace('firstMoment', first0!), draw.inPlace('secondMoment', second0)];
    addon.adamWInPlace([parameter], [first], [second], [gradient!], options);
    const { learningRate, weightDecay, correction1, correction2 } = options;
    const update = Array.from(gradient!, (value, i) => {
      const g = options.gradientScale * value;
      const [m, p] = [beta1 * first0![i]! + (1 - beta1) * g, parameter0![i]!];
      const size = beta1 * Math.abs(first0![i]!) + (1 - beta1) * Math.abs(g);
      const v = beta2 * second0[i]! + (1 - beta2) * g * g;
      const divisor = correction1 * (Math.sqrt(v / correction2) + options.epsilon);
      const change = learningRate * (weightDecay * p + m / divisor);
      const error = learningRate * (weightDecay * Math.abs(p) + size / divisor);
      return { m, v, p: p - change, size, error };
    });
    const of = (name: 'm' | 'v' | 'p') => update.map((element) => element[name]);
    draw.agree('firstMoment', first, of('m'), (i) => 4 * epsilon * update[i]!.size);
    draw.agree('secondMoment', second, of('v'), (i) => 6 * epsilon * update[i]!.v);
    const ofParameter = (i: number) =>
      2 * epsilon * Math.abs(parameter0![i]!) + 16 * epsilon * update[i]!.error;
    draw.agree('parameter', parameter, of('p'), ofParameter);
  },

  addInPlace(draw) {
    const x = draw.floats(draw.size('length', 70_000, [32767, 32768, 32769]));
    const before = draw.floats(x.length);
    const sum = draw.inPlace('accumulator', before);
    addon.addInPlace(sum, x);
    draw.agree(
      'accumulator',
      sum,
      before.map((value, i) => value + x[i]!),
      () => 0,
    );
  },

  singularValues(draw) {
    const [rows, columns] = [draw.size('rows'), draw.size('columns')];
    const x = draw.floats(rows * columns);
    const values = addon.singularValues(x, rows, columns);
    expect(values.length).toBe(Math.min(rows, columns));
    expect([...values]).toEqual([...values].sort((a, b) => b - a));
    // Traces of the Gram matrix and of its square.
    const gram = multiply(matrix(x, columns, rows, true), matrix(x, rows, columns)).value;
    const sum = (power: number) => values.reduce((total, value) => total + value ** power, 0);
    const squares = [norm(x), norm(gram)];
    draw.agree('the squares', [sum(2), sum(4)], squares, (i) => 2 ** -50 * (rows + columns) * squares[i]!);
  },
};

const norm = (entries: ArrayLike<number>) =>
  Array.from(entries).reduce((total, entry) => total + entry * entry, 0);

/** Checks that two bases have the same weight in both directions, using one-hot rows. */
function holdsWeight(draw: Draw, base: PackedBase, expected: PackedBase, rows: number, columns: number) {
  const unit = (size: number) =>
    Float32Array.from({ length: size * size }, (_, i) => (i % (size + 1) ? 0 : 1));
  const [found, wanted] = [base, expected].map((each) => {
    const [w, turned] = [draw.output('x w', rows * columns), draw.output('dy wᵀ', rows * columns)];
    addon.linearForward(w, null, unit(rows), { base: each, adapter: null }, rows);
    addon.linearBackward(
      turned,
      null,
      null,
      unit(columns),
      null,
      null,
      { base: each, adapter: null },
      columns,
    );
    return [w, turned] as const;
  });
  draw.same('x w', found![0], wanted![0]);
  draw.same('dy wᵀ', found![1], wanted![1]);
  expect(addon.packedBaseBytes(base)).toBe(addon.packedBaseBytes(expected));
  [base, expected].forEach((each) => addon.releaseBase(each));
}

function loraLinear(draw: Draw): void {
  const [rows, inFeatures] = [draw.size('rows', 200, [191, 192, 193]), draw.size('inFeatures', 140)];
  const out = draw.size('outFeatures', Math.max(1, Math.min(140, Math.floor(3e5 / (rows * inFeatures)))));
  const rank = draw.say('rank', draw.of([0, 1, 3, 8, 17]));
  const precision = draw.precision();
  const scale = draw.say('scale', draw.of([0.5, 2]));
  const [x, w, dy] = [draw.floats(rows * inFeatures), draw.floats(inFeatures * out), draw.floats(rows * out)];
  const [a, b] = [draw.floats(inFeatures * rank), draw.floats(rank * out)];
  const base = addon.packBase(w, inFeatures, out, precision);
  const [y, xa] = [draw.output('y', rows * out), draw.output('xa', rows * rank)];
  addon.linearForward(
    y,
    rank === 0 ? null : xa,
    x,
    { base, adapter: rank === 0 ? null : { rank, a, b, scale } },
    rows,
  );
  const dx = draw.output('dx', x.length);
  const [da, db] = [draw.output('da', a.length), draw.output('db', b.length)];
  addon.linearBackward(
    dx,
    rank === 0 ? null : da,
    rank === 0 ? null : db,
    dy,
    x,
    rank === 0 ? null : xa,
    { base, adapter: rank === 0 ? null : { rank, a, b, scale } },
    rows,
  );
  addon.releaseBase(base);

  const [X, W, A, B] = [
    matrix(x, rows, inFeatures),
    matrix(w, inFeatures, out),
    matrix(a, inFeatures, rank),
    matrix(b, rank, out),
  ];
  const DY = matrix(dy, rows, out);
  const XA = multiply(X, A);
  const P = multiply(DY, transposed(B)); // times scale
  const [xaM, pM] = [matrix(XA.value, rows, rank), matrix(P.value, rows, rank)];
  const rounding = precision === 'bfloat16' ? halfEpsilon : 0;
  const longest = rows + inFeatures + out + rank;
  // Two operands and one intermediate are rounded; the intermediate's error is relative to its terms, not to its sum.
  const within = (
    name: string,
    actual: Float32Array,
    terms: { value: Float64Array; factor: number }[],
    size: number,
  ) => {
    const expected = Float64Array.from(actual, (_, i) =>
      terms.reduce((sum, { value, factor }) => sum + factor * value[i]!, 0),
    );
    draw.agree(name, actual, expected, () => (4 * rounding + longest * epsilon) * size);
  };
  const inner = (length: number) => Math.max(1, length);
  within('xa', xa, [{ value: XA.value, factor: 1 }], inner(inFeatures));
  const ofY = multiply(xaM, B).value;
  within(
    'y',
    y,
    [
      { value: multiply(X, W).value, factor: 1 },
      { value: ofY, factor: scale },
    ],
    inFeatures * (1 + scale * rank),
  );
  const ofDx = multiply(pM, transposed(A)).value;
  within(
    'dx',
    dx,
    [
      { value: multiply(DY, transposed(W)).value, factor: 1 },
      { value: ofDx, factor: scale },
    ],
    out * (1 + scale * rank),
  );
  within('da', da, [{ value: multiply(transposed(X), pM).value, factor: scale }], scale * rows * out);
  within(
    'db',
    db,
    [{ value: multiply(transposed(xaM), DY).value, factor: scale }],
    scale * rows * inFeatures,
  );
}

function normalize(draw: Draw): void {
  const [rows, dim] = [draw.size('rows'), draw.size('dim', 300, [255, 256, 257])];
  const [x, gain, dy] = [draw.floats(rows * dim, 3), draw.floats(dim), draw.floats(rows * dim)];
  const [y, rstd] = [draw.output('y', x.length), draw.output('rstd', rows)];
  const [dx, dgain] = [draw.output('dx', x.length), draw.output('dgain', dim)];
  addon.rmsNormForward(y, rstd, x, gain, rows, dim, 1e-5);
  addon.rmsNormBackward(dx, dgain, dy, x, gain, rstd, rows, dim);
  const expected = rmsNorm(x, gain, dy, rows, dim, 1e-5);
  const relative = (dim + 8) * epsilon;
  draw.agree('y', y, expected.y, (i) => relative * Math.abs(expected.y[i]!));
  draw.agree('rstd', rstd, expected.rstd, (i) => relative * expected.rstd[i]!);
  draw.agree('dx', dx, expected.dx, (i) => 2 * relative * expected.dxSize[i]!);
  draw.agree('dgain', dgain, expected.dgain, (i) => (relative + rows * epsilon) * expected.dgainSize[i]!);
}

function attend(draw: Draw): void {
  const kvHeads = draw.size('kvHeads', 3);
  const group = draw.size('heads / kvHeads', 3);
  const headDim = draw.size('headDim', 70);
  const most = Math.max(1, Math.floor(Math.sqrt(4e5 / (kvHeads * group * headDim))));
  const time = draw.size('time', Math.min(most, 200), [127, 128, 129]);
  const batch = draw.size('batch', 2);
  const precision = draw.precision();
  const heads = kvHeads * group;
  const shape = { batch, time, heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim), documents: null };
  const queries = batch * time * shape.heads * headDim;
  const keys = batch * time * kvHeads * headDim;
  const [q, dout, k, v] = [draw.floats(queries), draw.floats(queries), draw.floats(keys), draw.floats(keys)];
  const [out, dq] = [draw.output('out', queries), draw.output('dq', queries)];
  const [dk, dv] = [draw.output('dk', keys), draw.output('dv', keys)];
  const logSumExp = draw.output('logSumExp', batch * shape.heads * time);
  addon.attentionForward(out, logSumExp, { q, k, v }, shape, precision);
  addon.attentionBackward({ q: dq, k: dk, v: dv }, dout, { q, k, v }, out, logSumExp, shape, precision);
  const expected = attention(shape, q, k, v, dout);
  // A score is at most the root of headDim; its error is a relative error of the probability and of everything computed from it.
  const rounding = precision === 'bfloat16' ? halfEpsilon : 0;
  const ofScore = Math.sqrt(headDim) * (2 * rounding + (headDim + 1) * epsilon);
  const relative = 2 * ofScore + 4 * rounding + (time * group + headDim + 8) * epsilon;
  for (const [name, actual] of Object.entries({ logSumExp, out, dq, dk, dv })) {
    const values = expected[name as keyof typeof expected];
    const tolerance = 4 * relative * Math.max(1, largest(values));
    draw.agree(name, actual, values, () => tolerance);
  }
}

function swiglu(draw: Draw): void {
  const length = draw.size('length', 70_000, [32767, 32768, 32769]);
  const [gate, up, dh] = [
    draw.floats(length, draw.of([1, 20, 120])),
    draw.floats(length),
    draw.floats(length),
  ];
  const h = draw.output('h', length);
  const [dgate, dup] = [draw.output('dgate', length), draw.output('dup', length)];
  addon.swigluForward(h, gate, up);
  addon.swigluBackward(dgate, dup, dh, gate, up);
  const terms = Array.from(gate, (g, i) => {
    const s = 1 / (1 + Math.exp(-g));
    const [u, d] = [up[i]!, dh[i]!];
    const slope = d * u * s;
    return {
      h: g * s * u,
      dup: d * g * s,
      dgate: slope * (1 + g * (1 - s)),
      size: slope * (1 + Math.abs(g)),
    };
  });
  // Where e^-g overflows, silu is below the smallest normal number and may be zero.
  const tolerance = (size: number) => 6 * epsilon * Math.abs(size) + 2 ** -120;
  const of = (name: 'h' | 'dup' | 'dgate') => terms.map((term) => term[name]);
  draw.agree('h', h, of('h'), (i) => tolerance(terms[i]!.h));
  draw.agree('dup', dup, of('dup'), (i) => tolerance(terms[i]!.dup));
  draw.agree('dgate', dgate, of('dgate'), (i) => tolerance(terms[i]!.size));
}

describe.each(instructionSets)(
  'with %s, any shape anywhere in memory agrees with float64',
  (instructionSet) => {
    // A check that covers two functions is run once.
    const cases = [...new Map(Object.entries(properties).map(([name, check]) => [check, name]))];
    it.each(cases.map(([check, name]) => ({ name, check })))('$name', ({ check }) => {
      for (let seed = firstSeed; seed < firstSeed + draws; seed++) {
        const [alone, together] = [1, 2 + (seed % 4)].map((threads) => {
          addon.configure({ instructionSet, threads });
          const draw = new Draw(seed, `${threads} threads`);
          check(draw);
          return draw.results();
        });
        // Compared here, because `toEqual` examines a million bytes one by one.
        const isSame = alone!.every((bits, i) => bits.equals(together![i]!));
        expect(isSame, `the same bits on any number of threads, seed ${seed}`).toBe(true);
      }
    });
  },
);

it('every function with a numeric result is drawn for', () => {
  const others = [
    'codedAdamWInPlace', // checked against a float64 model in nativeKernels.test.ts
    'allocations',
    'apolloMiniInPlace', // checked against its definition in conformance/
    'attentionHalfStateLength',
    'callCounts',
    'configure',
    'describe',
    'freeBuffer',
    'exchangeAbandon', // these seven are tested between processes in ranks.test.ts
    'exchangeGather',
    'exchangeLeave',
    'exchangeReach',
    'exchangeSum',
    'openMpi',
    'openSharedMemory',
    'dropoutMask', // checked against device/dropout.ts in conformance/
    'loraMuonInPlace', // these two as well, and against float64 in training.muon.test.ts
    'muonInPlace',
    'mapFloats',
    'measurePeak',
    'open',
    'mlpHalfStateLength',
    'packBase',
    'packedBaseBytes',
    'releaseBase',
    'releasePages',
    'trimHeap',
  ];
  expect([...Object.keys(properties), ...others].sort()).toEqual(Object.keys(addon).sort());
});
