import { afterAll, describe, expect, it } from 'vitest';
import { loadNativeAddon, type ProductPrecision } from '../../engine/dist/device/cpu/nativeAddon.js';
import { decode, zeroSigned, zeroUnsigned } from '../../engine/dist/device/momentCodes.js';
import {
  attention,
  excess,
  headCrossEntropy,
  largest,
  matrix,
  multiply,
  seededArray,
} from './nativeReference.js';

const addon = loadNativeAddon();
const { instructionSets } = addon.describe();
const precisions: ProductPrecision[] = ['float32', 'bfloat16'];
const epsilon = 2 ** -24;

afterAll(() => addon.configure({ instructionSet: instructionSets[0]!, threads: 1 }));

/** Width of the cell of a value relative to its scale; the lowest cell begins at zero. */
function cellWidth(share: number, decades: number): number {
  const decade = Math.max(Math.ceil(Math.log10(share) - 1e-3), 1 - decades);
  return (10 ** decade * 0.9) / 2 ** (decades - 1 + decade) + (decade === 1 - decades ? 2 * 10 ** decade : 0);
}

/** Runs the kernel with one and with two threads, requires the same bits, and returns its outputs. */
function onAnyThreads(
  instructionSet: (typeof modelledToo)[number],
  run: () => Float32Array[],
): Float32Array[] {
  addon.configure({ instructionSet, threads: 1 });
  const alone = run();
  addon.configure({ instructionSet, threads: 2 });
  expect(run()).toEqual(alone);
  return alone;
}

describe.each(instructionSets)('kernels with %s', (instructionSet) => {
  it.each([
    [1, 1],
    [3, 17],
    [70, 129],
    [33, 64],
  ])('normalize %i rows of %i by their root mean square', (rows, dim) => {
    const x = seededArray(rows * dim, 1, 3);
    const gain = seededArray(dim, 2);
    const dy = seededArray(rows * dim, 3);
    const [y, rstd, dx, dgain] = onAnyThreads(instructionSet, () => {
      const outputs = [rows * dim, rows, rows * dim, dim].map((length) => new Float32Array(length));
      addon.rmsNormForward(outputs[0]!, outputs[1]!, x, gain, rows, dim, 1e-5);
      addon.rmsNormBackward(outputs[2]!, outputs[3]!, dy, x, gain, outputs[1]!, rows, dim);
      return outputs;
    });
    const expected = {
      y: x.map(() => 0),
      rstd: [] as number[],
      dx: new Float64Array(x.length),
      dgain: new Float64Array(dim),
    };
    for (let row = 0; row < rows; row++) {
      const at = (i: number) => row * dim + i;
      let squares = 0;
      for (let i = 0; i < dim; i++) squares += x[at(i)]! ** 2;
      const r = 1 / Math.sqrt(squares / dim + 1e-5);
      expected.rstd.push(r);
      let dot = 0;
      for (let i = 0; i < dim; i++) dot += dy[at(i)]! * gain[i]! * x[at(i)]!;
      for (let i = 0; i < dim; i++) {
        expected.y[at(i)] = x[at(i)]! * r * gain[i]!;
        expected.dx[at(i)] = r * (dy[at(i)]! * gain[i]! - (x[at(i)]! * r * r * dot) / dim);
        expected.dgain[i]! += dy[at(i)]! * x[at(i)]! * r;
      }
    }
    const within = (actual: Float32Array, values: ArrayLike<number>, length: number) =>
      expect(
        excess(actual, values, () => (length + 8) * epsilon * Math.max(1, largest(values))),
      ).toBeLessThanOrEqual(0);
    within(y!, expected.y, dim);
    within(rstd!, expected.rstd, dim);
    within(dx!, expected.dx, dim);
    within(dgain!, expected.dgain, rows + dim);
  });

  it.each([2, 6, 34, 64])('turn pairs of a head of %i by their position, and back', (headDim) => {
    const [batch, time, heads, firstPosition] = [2, 5, 3, 4];
    const x = seededArray(batch * time * heads * headDim, 4);
    const half = headDim / 2;
    const angle = (position: number, i: number) => position / 10000 ** ((2 * i) / headDim);
    const table = (f: (angle: number) => number) =>
      Float32Array.from({ length: (firstPosition + time) * half }, (_, i) =>
        f(angle(Math.floor(i / half), i % half)),
      );
    const [cos, sin] = [table(Math.cos), table(Math.sin)];
    const [y, back] = onAnyThreads(instructionSet, () => {
      const outputs = [new Float32Array(x.length), new Float32Array(x.length)];
      addon.rotary(outputs[0]!, x, { cos, sin }, { batch, time, heads, headDim, firstPosition }, false);
      addon.rotary(
        outputs[1]!,
        outputs[0]!,
        { cos, sin },
        { batch, time, heads, headDim, firstPosition },
        true,
      );
      return outputs;
    });
    const expected = Float64Array.from(x, (_, index) => {
      const i = index % headDim;
      const position = firstPosition + (Math.floor(index / (heads * headDim)) % time);
      const [c, s] = [Math.cos(angle(position, i % half)), Math.sin(angle(position, i % half))];
      return i < half ? x[index]! * c - x[index + half]! * s : x[index]! * c + x[index - half]! * s;
    });
    expect(excess(y!, expected, () => 6 * epsilon)).toBeLessThanOrEqual(0);
    expect(excess(back!, x, () => 12 * epsilon)).toBeLessThanOrEqual(0);
  });

  it('gate with silu over the whole range of float32', () => {
    const special = [0, -0, 1e-30, -1e-30, 87, -87, 88.5, -88.5, 100, -100, -104, 1e30, NaN];
    const gate = Float32Array.of(...special, ...seededArray(40011, 5, 20));
    const up = seededArray(gate.length, 6).map((value, i) => (i < special.length ? 1 : value));
    const dh = seededArray(gate.length, 7);
    const [h, dgate, dup] = onAnyThreads(instructionSet, () => {
      const outputs = [0, 1, 2].map(() => new Float32Array(gate.length));
      addon.swigluForward(outputs[0]!, gate, up);
      addon.swigluBackward(outputs[1]!, outputs[2]!, dh, gate, up);
      return outputs;
    });
    const sigmoid = (g: number) => 1 / (1 + Math.exp(-g));
    for (let i = 0; i < gate.length; i++) {
      const [g, u, d] = [gate[i]!, up[i]!, dh[i]!];
      if (Number.isNaN(g)) {
        expect([h![i], dgate![i], dup![i]]).toEqual([NaN, NaN, NaN]);
        continue;
      }
      // Where e^-g overflows, silu is below the smallest normal number and may be zero.
      const close = (actual: number, value: number, size: number) =>
        Math.abs(actual - value) <= 6 * epsilon * Math.abs(size) + 2 ** -120;
      const s = sigmoid(g); // dgate uses 1 - s, whose error is that of s: absolute, not relative
      const failed = [
        close(h![i]!, g * s * u, g * s * u) || 'h',
        close(dup![i]!, d * g * s, d * g * s) || 'dup',
        close(dgate![i]!, d * u * s * (1 + g * (1 - s)), d * u * s * (1 + Math.abs(g))) || 'dgate',
      ].filter((name) => name !== true);
      if (failed.length > 0)
        throw new Error(`${failed.join(', ')} wrong at gate ${g}: ${h![i]}, ${dgate![i]}, ${dup![i]}`);
    }
  });

  it.each([
    [1, 1, 1, 1],
    [17, 3, 5, 1000],
    [33, 7, 2, 40000],
  ])(
    'add a scaled product to weights once: in=%i, rank=%i, out=%i, weights %i times larger',
    (inFeatures, rank, out, size) => {
      const w = seededArray(inFeatures * out, 8, size);
      const a = seededArray(inFeatures * rank, 9);
      const b = seededArray(rank * out, 10);
      let result = { finite: false, deltaNorm: 0 };
      const [merged] = onAnyThreads(instructionSet, () => {
        const output = new Float32Array(w.length);
        result = addon.mergeAdapter(output, w, a, b, 0.25, inFeatures, rank, out);
        return [output];
      });
      const delta = multiply(matrix(a, inFeatures, rank), matrix(b, rank, out));
      const expected = delta.value.map((value, i) => w[i]! + 0.25 * value);
      const tolerance = (i: number) =>
        epsilon * (1.01 * Math.abs(expected[i]!) + (rank + 2) * delta.magnitude[i]!);
      expect(excess(merged!, expected, tolerance)).toBeLessThanOrEqual(0);
      expect(result.finite).toBe(true);
      const norm = 0.25 * Math.hypot(...delta.value);
      expect(Math.abs(result.deltaNorm - norm)).toBeLessThanOrEqual(
        (rank + 2) * epsilon * Math.max(norm, largest(delta.magnitude)),
      );
    },
  );

  it('say that a merge is not finite', () => {
    addon.configure({ instructionSet, threads: 1 });
    for (const poison of [NaN, Infinity, 3e38]) {
      const merged = new Float32Array(51);
      const w = new Float32Array(51).fill(1);
      const b = new Float32Array(17).fill(1);
      b[16] = poison;
      expect(addon.mergeAdapter(merged, w, new Float32Array(3).fill(2), b, 1, 3, 1, 17).finite).toBe(false);
    }
  });

  it.each([1, 31, 32, 32768, 32769, 100003])('sum %i squares in float64', (length) => {
    const x = seededArray(length, 11, 1e3);
    let expected = 0;
    for (const value of x) expected += value * value;
    const sums = [1, 2].map((threads) => {
      addon.configure({ instructionSet, threads });
      return addon.sumSquares([x]);
    });
    expect(sums[0]).toBe(sums[1]);
    expect(Math.abs(sums[0]! - expected)).toBeLessThanOrEqual(length * 2 ** -53 * expected);
  });

  it('update by AdamW, and accumulate', () => {
    const length = 32768 + 37;
    const start = [12, 13, 14, 15].map((seed) => seededArray(length, seed));
    start[2] = start[2]!.map(Math.abs);
    const options = {
      learningRate: 1e-2,
      beta1: 0.9,
      beta2: 0.95,
      epsilon: 1e-8,
      weightDecay: 0.1,
      correction1: 1 - 0.9 ** 3,
      correction2: 1 - 0.95 ** 3,
      gradientScale: 0.5,
    };
    const [p, m, v, sum] = onAnyThreads(instructionSet, () => {
      const [parameter, first, second] = start.map((array) => array.slice());
      addon.adamWInPlace([parameter!], [first!], [second!], [start[3]!], options);
      const accumulator = start[0]!.slice();
      addon.addInPlace(accumulator, start[3]!);
      return [parameter!, first!, second!, accumulator];
    });
    for (let i = 0; i < length; i++) {
      const g = 0.5 * start[3]![i]!;
      const first = 0.9 * start[1]![i]! + (1 - 0.9) * g;
      const second = 0.95 * start[2]![i]! + (1 - 0.95) * g * g;
      const step =
        0.1 * start[0]![i]! + first / options.correction1 / (Math.sqrt(second / options.correction2) + 1e-8);
      const size = Math.abs(first / options.correction1 / Math.sqrt(second / options.correction2));
      const differences = [
        Math.abs(m![i]! - first) - 4 * epsilon,
        Math.abs(v![i]! - second) - 4 * epsilon,
        Math.abs(p![i]! - (start[0]![i]! - 1e-2 * step)) -
          2 * epsilon -
          1e-2 * 8 * epsilon * (1 + size + 1 / Math.sqrt(second)),
        Math.abs(sum![i]! - Math.fround(start[0]![i]! + start[3]![i]!)),
      ];
      if (!differences.every((difference) => difference <= 0))
        throw new Error(`element ${i}: ${differences.join(', ')}`);
    }
  });

  it('update every array of a list by AdamW as it would be alone', () => {
    const options = {
      learningRate: 1e-2,
      beta1: 0.9,
      beta2: 0.95,
      epsilon: 1e-8,
      weightDecay: 0.1,
      correction1: 0.1,
      correction2: 0.05,
      gradientScale: 0.5,
    };
    const start = [1, 0, 40000, 17].map((length, i) =>
      [31, 32, 33, 34].map((seed) => seededArray(length, seed + i).map(Math.abs)),
    );
    const together = onAnyThreads(instructionSet, () => {
      const arrays = start.map((of) => of.map((array) => array.slice()));
      const list = (index: number) => arrays.map((of) => of[index]!);
      addon.adamWInPlace(list(0), list(1), list(2), list(3), options);
      return arrays.flat();
    });
    const alone = start.flatMap((of) => {
      const [p, m, v, g] = of.map((array) => array.slice()) as [
        Float32Array,
        Float32Array,
        Float32Array,
        Float32Array,
      ];
      addon.adamWInPlace([p], [m], [v], [g], options);
      return [p, m, v, g];
    });
    expect(together).toEqual(alone);
  });

  it('update by AdamW with moments in eight bits: each is kept within half a cell', () => {
    const half = 0.504; // of a cell, which is stretched by at most 0.8 %
    const length = 32768 + 256 + 37;
    const parameter = seededArray(length, 41);
    const first = zeroSigned(length);
    const second = zeroUnsigned(length);
    // Magnitudes over five decades, a block of zeros, and one of the smallest numbers.
    const gradientOf = (step: number) =>
      seededArray(length, 42 + step).map((value, i) => {
        const block = Math.floor(i / 256);
        return block === 3 ? 0 : value * (block === 4 ? 1e-20 : 10 ** -((i * 7) % 6));
      });
    for (let step = 1; step <= 4; step++) {
      const options = {
        learningRate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weightDecay: 0.1,
        correction1: 1 - 0.9 ** step,
        correction2: 1 - 0.95 ** step,
        gradientScale: 0.5,
      };
      const before = { parameter: parameter.slice(), first: decode(first), second: decode(second) };
      const gradient = gradientOf(step);
      const results = [1, 2].map((threads) => {
        addon.configure({ instructionSet, threads });
        const copies = [parameter, first.codes, first.scales, second.codes, second.scales].map((array) => [
          array.slice(),
        ]) as Parameters<typeof addon.codedAdamWInPlace> extends [...infer T, unknown, unknown] ? T : never;
        addon.codedAdamWInPlace(...copies, [gradient], options);
        return copies.map(([array]) => array!);
      });
      expect(results[0]).toEqual(results[1]);
      [parameter, first.codes, first.scales, second.codes, second.scales].forEach((array, i) =>
        array.set(results[0]![i]!),
      );
      const after = { first: decode(first), second: decode(second) };
      for (let i = 0; i < length; i++) {
        // For a block of zeros any scale is correct.
        const scale = { first: first.scales[i >> 8]! || 1, second: second.scales[i >> 8]! || 1 };
        const g = 0.5 * gradient[i]!;
        const m = 0.9 * before.first[i]! + (1 - 0.9) * g;
        const v = 0.95 * before.second[i]! + (1 - 0.95) * g * g;
        const direction = m / options.correction1 / (Math.sqrt(v / options.correction2) + 1e-8);
        const p = before.parameter[i]! - 1e-2 * (0.1 * before.parameter[i]! + direction);
        const kept = [
          Math.abs(after.first[i]! - m) <= cellWidth(Math.abs(m) / scale.first, 7) * scale.first * half,
          Math.abs(after.second[i]! - v) <= cellWidth(v / scale.second, 8) * scale.second * half + 1e-42,
          Math.abs(parameter[i]! - p) <= 1e-6 * (1 + Math.abs(direction)),
          v < 1e-44 || after.second[i]! > 0,
          !(m === 0) || first.codes[i] === 0,
        ];
        if (kept.includes(false))
          throw new Error(
            `step ${step}, element ${i}: ${kept.join(', ')}; ${m} ${after.first[i]}, ${v} ${after.second[i]}, ${parameter[i]} ${p}`,
          );
      }
    }
  });

  it('look up rows of a table, and add gradients where an id comes twice', () => {
    const [rows, vocabulary, dim] = [67, 19, 33];
    const table = seededArray(vocabulary * dim, 16);
    const dy = seededArray(rows * dim, 17);
    const ids = Int32Array.from({ length: rows }, (_, i) => (i * i) % (vocabulary - 1)); // the last row is never used
    const [y, dtable] = onAnyThreads(instructionSet, () => {
      const outputs = [new Float32Array(rows * dim).fill(NaN), new Float32Array(vocabulary * dim).fill(NaN)];
      addon.embeddingForward(outputs[0]!, table, ids, rows, vocabulary, dim);
      addon.embeddingBackward(outputs[1]!, dy, ids, rows, vocabulary, dim);
      return outputs;
    });
    const expected = new Float32Array(vocabulary * dim);
    ids.forEach((id, row) => {
      expect(y!.subarray(row * dim, (row + 1) * dim)).toEqual(table.subarray(id * dim, (id + 1) * dim));
      for (let i = 0; i < dim; i++) expected[id * dim + i]! += dy[row * dim + i]!;
    });
    expect(dtable).toEqual(expected);
  });
});

// The models, too: their panels begin at other multiples than those of the sets that a processor without tiles has.
const modelledToo = [...instructionSets, 'amx-model' as const, 'neonBf16-model' as const];
const cases = modelledToo.flatMap((instructionSet) =>
  precisions.map((precision) => ({ instructionSet, precision })),
);

describe.each(cases)(
  'products inside kernels with $instructionSet in $precision',
  ({ instructionSet, precision }) => {
    // Operands of two chained products are rounded; each rounding is at most 2^-9 of a term.
    const roundings = precision === 'bfloat16' ? 6 * 2 ** -9 : 0;

    it.each([
      { batch: 1, time: 1, heads: 1, kvHeads: 1, headDim: 2 },
      { batch: 2, time: 17, heads: 3, kvHeads: 3, headDim: 8 },
      { batch: 1, time: 65, heads: 4, kvHeads: 2, headDim: 34 },
      { batch: 1, time: 131, heads: 2, kvHeads: 1, headDim: 64 },
    ])('attend causally: $time positions, $heads heads on $kvHeads, of $headDim', (sizes) => {
      const { batch, time, heads, kvHeads, headDim } = sizes;
      const shape = { ...sizes, scale: 1 / Math.sqrt(headDim), documents: null };
      const queries = batch * time * heads * headDim;
      const keys = batch * time * kvHeads * headDim;
      const [q, k, v, dout] = [
        seededArray(queries, 18, 2),
        seededArray(keys, 19, 2),
        seededArray(keys, 20),
        seededArray(queries, 21),
      ];
      const [out, logSumExp, dq, dk, dv] = onAnyThreads(instructionSet, () => {
        const outputs = [queries, batch * heads * time, queries, keys, keys].map((length) =>
          new Float32Array(length).fill(NaN),
        );
        const [out, logSumExp, dq, dk, dv] = outputs as [
          Float32Array,
          Float32Array,
          Float32Array,
          Float32Array,
          Float32Array,
        ];
        const of = { q: q!, k: k!, v: v! };
        addon.attentionForward(out, logSumExp, of, shape, precision);
        const gradients = { q: dq, k: dk, v: dv };
        addon.attentionBackward(gradients, dout!, of, out, logSumExp, shape, precision);
        return outputs;
      });
      const expected = attention(shape, q!, k!, v!, dout!);
      const within = (actual: Float32Array, values: Float64Array, length: number) => {
        const tolerance = (roundings + length * epsilon) * 4 * Math.max(1, largest(values));
        expect(excess(actual, values, () => tolerance)).toBeLessThanOrEqual(0);
      };
      within(logSumExp!, expected.logSumExp, headDim + time);
      within(out!, expected.out, headDim + time);
      within(dq!, expected.dq, headDim + time);
      within(dk!, expected.dk, headDim + time * heads);
      within(dv!, expected.dv, headDim + time * heads);
    });

    it.each([
      [1, 1, 1],
      [17, 33, 65],
      [300, 16, 131],
    ])('lose %i rows of %i over %i tokens', (rows, dim, vocabulary) => {
      const x = seededArray(rows * dim, 22);
      const head = seededArray(vocabulary * dim, 23);
      const targets = Int32Array.from({ length: rows }, (_, i) => (i % 5 === 3 ? -1 : (i * 7) % vocabulary));
      const gradientScale = 1 / rows;
      const [losses, dx, dhead] = onAnyThreads(instructionSet, () => {
        const outputs = [rows, rows * dim, vocabulary * dim].map((length) =>
          new Float32Array(length).fill(NaN),
        );
        addon.headCrossEntropy(
          outputs[0]!,
          outputs[1]!,
          outputs[2]!,
          x,
          head,
          targets,
          { rows, hidden: dim, vocabulary, gradientScale, inInt8: false },
          precision,
        );
        const only = new Float32Array(rows);
        addon.headCrossEntropy(
          only,
          null,
          null,
          x,
          head,
          targets,
          { rows, hidden: dim, vocabulary, gradientScale, inInt8: false },
          precision,
        );
        expect(only).toEqual(outputs[0]);
        const without = new Float32Array(rows * dim);
        addon.headCrossEntropy(
          only,
          without,
          null,
          x,
          head,
          targets,
          { rows, hidden: dim, vocabulary, gradientScale, inInt8: false },
          precision,
        );
        expect(without).toEqual(outputs[1]);
        return outputs;
      });
      const expected = headCrossEntropy(x, head, targets, rows, dim, vocabulary, gradientScale);
      const within = (actual: Float32Array, values: Float64Array, length: number, size: number) => {
        const tolerance = (roundings + (length + 8) * epsilon) * 4 * size;
        expect(excess(actual, values, () => tolerance)).toBeLessThanOrEqual(0);
      };
      within(losses!, expected.losses, dim + vocabulary, Math.max(1, largest(expected.losses)));
      within(dx!, expected.dx, dim + vocabulary, gradientScale);
      within(dhead!, expected.dhead, dim + rows, gradientScale * Math.max(1, rows / vocabulary));
    });

    it('lose and learn where logits lie far from that of the target', () => {
      const [rows, dim, vocabulary] = [5, 2, 1000];
      const x = Float32Array.of(80, 1, 1, 80, 40, 40, 80, -80, 3, 1);
      // Rows of the head are on a circle, so the largest logits of each row of x are in few blocks.
      const head = Float32Array.from({ length: vocabulary * dim }, (_, i) =>
        i % 2 === 0 ? Math.cos(i / 300) : Math.sin((i - 1) / 300),
      );
      const targets = Int32Array.of(700, 0, 999, 400, 12);
      const [losses, dx, dhead] = [rows, rows * dim, vocabulary * dim].map(
        (length) => new Float32Array(length),
      );
      addon.configure({ instructionSet, threads: 2 });
      addon.headCrossEntropy(
        losses!,
        dx!,
        dhead!,
        x,
        head,
        targets,
        { rows, hidden: dim, vocabulary, gradientScale: 1, inInt8: false },
        precision,
      );
      const expected = headCrossEntropy(x, head, targets, rows, dim, vocabulary, 1);
      // Rounding an operand changes a logit of 80 by up to 80 roundings, and probabilities by the same ratio.
      const tolerance = 200 * (roundings + epsilon * 100);
      expect(excess(losses!, expected.losses, () => tolerance)).toBeLessThanOrEqual(0);
      expect(excess(dx!, expected.dx, () => tolerance)).toBeLessThanOrEqual(0);
      expect(excess(dhead!, expected.dhead, () => 80 * tolerance)).toBeLessThanOrEqual(0);
    });

    it('report a NaN in the head as a NaN loss', () => {
      addon.configure({ instructionSet, threads: 1 });
      const losses = new Float32Array(2);
      const head = seededArray(70, 24);
      head[69] = NaN;
      addon.headCrossEntropy(
        losses,
        null,
        null,
        seededArray(4, 25),
        head,
        Int32Array.of(0, -1),
        { rows: 2, hidden: 2, vocabulary: 35, gradientScale: 1, inInt8: false },
        precision,
      );
      expect([...losses]).toEqual([NaN, 0]);
    });
  },
);

describe('singular values', () => {
  it.each([
    [1, 1],
    [3, 17],
    [40, 12],
    [65, 65],
    [64, 200],
  ])('of a %i by %i matrix of known spectrum', (rows, columns) => {
    // u diag(values) vᵀ with reflections u and v: the singular values are known exactly.
    const count = Math.min(rows, columns);
    const values = Float64Array.from({ length: count }, (_, i) => 10 * 0.8 ** i);
    const reflection = (length: number, seed: number) => {
      const v = Float64Array.from(seededArray(length, seed));
      const norm = v.reduce((sum, value) => sum + value * value, 0);
      return (i: number, j: number) => (i === j ? 1 : 0) - (2 * v[i]! * v[j]!) / norm;
    };
    const [u, v] = [reflection(rows, 26), reflection(columns, 27)];
    const data = Float32Array.from({ length: rows * columns }, (_, index) => {
      let sum = 0;
      for (let l = 0; l < count; l++)
        sum += u(Math.floor(index / columns), l) * values[l]! * v(index % columns, l);
      return sum;
    });
    const results = [1, 2].map((threads) => {
      addon.configure({ instructionSet: instructionSets[0]!, threads });
      return addon.singularValues(data, rows, columns);
    });
    expect(results[0]).toEqual(results[1]);
    // The matrix itself was rounded to float32; the Gram matrix squares small values.
    expect(
      excess(results[0]!, values, (i) => 10 * epsilon * 4 + (10 * 2 ** -50) / values[i]!),
    ).toBeLessThanOrEqual(0);
  });

  it('show rank, zero matrices and NaN', () => {
    const a = matrix(seededArray(50 * 3, 28), 50, 3);
    const lowRank = Float32Array.from(multiply(a, matrix(seededArray(3 * 30, 29), 3, 30)).value);
    const values = addon.singularValues(lowRank, 50, 30);
    expect(values[2]!).toBeGreaterThan(0.1);
    expect(values[3]! / values[0]!).toBeLessThan(1e-6);
    expect([...addon.singularValues(new Float32Array(12), 3, 4)]).toEqual([0, 0, 0]);
    expect([...addon.singularValues(Float32Array.of(1, 2, NaN, 4, 5, 6), 2, 3)]).toEqual([NaN, NaN]);
  });
});
