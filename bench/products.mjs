import { readFileSync } from 'node:fs';
import { percent, table } from './table.mjs';

export const name = 'products';
export const title = 'Products of preset shapes, as shares of the measured peak';
export const isFull = false;

const windowCount = 4;
const productMilliseconds = 40;
const peakMilliseconds = 15;
const shapesFile = new URL('shapes.txt', import.meta.url);

const noise = (length) => {
  const values = new Float32Array(length);
  let state = length | 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    values[i] = state / 2 ** 31;
  }
  return values;
};
const zeros = (length) => new Float32Array(length);

/**
 * Alternates windows of the product and of the peak, so that both are measured under the same conditions on a shared machine: the best and
 * the median of the product in seconds, the best peak in GFLOP/s.
 */
function time(run, peakNow) {
  const seconds = [];
  let peak = 0;
  for (let window = 0; window < windowCount; window++) {
    peak = Math.max(peak, peakNow());
    run(); // brings its operands back into the caches, which the peak has used
    const begin = performance.now();
    do {
      const start = performance.now();
      run();
      seconds.push((performance.now() - start) / 1e3);
    } while (performance.now() - begin < productMilliseconds);
  }
  seconds.sort((a, b) => a - b);
  return { best: seconds[0], median: seconds[seconds.length >> 1], peak };
}

/** What one line of shapes.txt measures: [name, floating-point operations, run]. */
const kinds = {
  base(addon, precision, rows, inFeatures, out) {
    const base = addon.packBase(noise(inFeatures * out), inFeatures, out, precision);
    const [x, dy] = [rows * inFeatures, rows * out].map(noise);
    const [y, dx, dw] = [rows * out, rows * inFeatures, inFeatures * out].map(zeros);
    const operations = 2 * rows * inFeatures * out;
    return [
      ['x w', operations, () => addon.linearForward(y, null, x, { base, adapter: null }, rows)],
      [
        'dy wᵀ',
        operations,
        () => addon.linearBackward(dx, null, null, dy, x, null, { base, adapter: null }, rows),
      ],
      [
        'dw = xᵀ dy',
        operations,
        () =>
          addon.matmul(
            dw,
            x,
            dy,
            { batch: 1, m: inFeatures, n: out, k: rows, transposeA: true, transposeB: false },
            precision,
          ),
      ],
    ];
  },
  adapter(addon, precision, rows, inFeatures, out, rank) {
    const [x, dy, xa, a, b] = [rows * inFeatures, rows * out, rows * rank, inFeatures * rank, rank * out].map(
      noise,
    );
    const product = (name, m, n, k, p, q, transposeA, transposeB) => {
      const c = zeros(m * n);
      return [
        name,
        2 * m * n * k,
        () => addon.matmul(c, p, q, { batch: 1, m, n, k, transposeA, transposeB }, precision),
      ];
    };
    return [
      product('x a', rows, rank, inFeatures, x, a, false, false),
      product('(x a) b', rows, out, rank, xa, b, false, false),
      product('dy bᵀ', rows, rank, out, dy, b, false, true),
      product('da = xᵀ p', inFeatures, rank, rows, x, xa, true, false),
      product('db = (x a)ᵀ dy', rank, out, rows, xa, dy, true, false),
    ];
  },
  layer(addon, precision, rows, inFeatures, out, rank) {
    const base = addon.packBase(noise(inFeatures * out), inFeatures, out, precision);
    const [x, dy, a, b] = [rows * inFeatures, rows * out, inFeatures * rank, rank * out].map(noise);
    const [y, xa, dx, da, db] = [
      rows * out,
      rows * rank,
      rows * inFeatures,
      inFeatures * rank,
      rank * out,
    ].map(zeros);
    const forward = 2 * rows * (inFeatures * out + rank * (inFeatures + out));
    return [
      [
        'forward',
        forward,
        () => addon.linearForward(y, xa, x, { base, adapter: { rank, a, b, scale: 1 } }, rows),
      ],
      [
        'backward',
        forward + 2 * rows * rank * (inFeatures + out),
        () => addon.linearBackward(dx, da, db, dy, x, xa, { base, adapter: { rank, a, b, scale: 1 } }, rows),
      ],
    ];
  },
  head(addon, precision, rows, dim, vocabulary) {
    const [x, head, losses, dx] = [
      noise(rows * dim),
      noise(vocabulary * dim),
      zeros(rows),
      zeros(rows * dim),
    ];
    const dhead = zeros(vocabulary * dim);
    const targets = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % vocabulary);
    const operations = 2 * rows * dim * vocabulary;
    const run =
      (...gradients) =>
      () =>
        addon.headCrossEntropy(
          losses,
          ...gradients,
          x,
          head,
          targets,
          { rows, hidden: dim, vocabulary, gradientScale: 1 / rows, inInt8: precision === 'int8' },
          precision === 'int8' ? 'float32' : precision,
        );
    return [
      ['loss', operations, run(null, null)],
      ['loss, dx, dhead', 3 * operations, run(dx, dhead)],
    ];
  },
  attention(addon, precision, batch, timeSteps, heads, headDim) {
    const size = batch * timeSteps * heads * headDim;
    const [q, k, v, dout] = [size, size, size, size].map(noise);
    const [out, dq, dk, dv] = [size, size, size, size].map(zeros);
    const logSumExp = zeros(batch * heads * timeSteps);
    const of = { q, k, v };
    const gradients = { q: dq, k: dk, v: dv };
    const shape = {
      batch,
      time: timeSteps,
      heads,
      kvHeads: heads,
      headDim,
      scale: 1 / Math.sqrt(headDim),
      documents: null,
    };
    const square = size * timeSteps; // two products of half a square each
    return [
      ['forward', 2 * square, () => addon.attentionForward(out, logSumExp, of, shape, precision)],
      [
        'backward',
        5 * square,
        () => addon.attentionBackward(gradients, dout, of, out, logSumExp, shape, precision),
      ],
    ];
  },
};

/** If the addon refuses a precision for a product, there is no row for it. */
export function run({ addon, results: { machine } }) {
  const lines = readFileSync(shapesFile, 'utf8')
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.startsWith('#'));
  const rows = [];
  for (const precision of Object.keys(machine.peaks).filter((name) => machine.peaks[name] !== null)) {
    const peakNow = () => addon.measurePeak(precision, peakMilliseconds);
    for (const line of lines) {
      const [kind, ...sizes] = line.trim().split(/\s+/);
      for (const [product, operations, run] of casesOf(addon, kind, precision, sizes.map(Number))) {
        const { best, median, peak } = time(run, peakNow);
        const [gflopsBest, gflopsMedian] = [best, median].map((seconds) => operations / seconds / 1e9);
        const share = gflopsBest / peak;
        const shape = sizes.join('x');
        rows.push({ precision, kind, product, shape, operations, gflopsBest, gflopsMedian, peak, share });
      }
    }
  }
  return rows;
}

/** The cases that the addon accepts: not every product exists in every precision. */
function casesOf(addon, kind, precision, sizes) {
  let cases;
  try {
    cases = kinds[kind](addon, precision, ...sizes);
  } catch {
    return [];
  }
  return cases.filter(([, , run]) => {
    try {
      run();
      return true;
    } catch {
      return false;
    }
  });
}

/** Time of these products at the peak over their actual time: what a step consisting of them would reach. */
export function weightedShare(rows) {
  const sum = (rate) => rows.reduce((seconds, row) => seconds + row.operations / row[rate], 0);
  return sum('peak') / sum('gflopsBest');
}

export function report(rows) {
  const cells = rows.map((row) => [
    row.precision,
    `${row.kind}: ${row.product}`,
    row.shape,
    ...[row.gflopsBest, row.gflopsMedian, row.peak].map((value) => value.toFixed(0)),
    percent(row.share),
  ]);
  return `Shapes of bench/shapes.txt. Each product is measured in turn with the peak; a share is its best divided by the best peak.

${table(['precision', 'product', 'shape', 'GFLOP/s, best', 'median', 'peak', 'share'], cells)}`;
}

export function plots(rows) {
  const groups = new Map();
  for (const row of rows) {
    const label = `${row.precision}, ${row.kind}`;
    groups.set(label, [...(groups.get(label) ?? []), row]);
  }
  const precisions = [...new Set(rows.map(({ precision }) => precision))];
  const bars = [...groups].map(([label, group]) => {
    const share = weightedShare(group);
    return { label, value: share, shown: percent(share), tone: precisions.indexOf(group[0].precision) };
  });
  return [{ title: 'Products: share of the measured peak, by operations', bars, end: 1 }];
}
