// Speed of the native products at the shapes of bench/shapes.txt, as GFLOP/s and as a share of the measured peak.
// node bench/products.mjs [instructionSet] [float32|bfloat16]
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { loadNativeAddon } from '../engine/dist/backend/nativeAddon.js';

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

/** Repeats until `milliseconds` have passed, at least three times after one warm-up; gives the best and the median in seconds. */
function time(run, milliseconds) {
  run();
  const seconds = [];
  const begin = performance.now();
  while (seconds.length < 3 || performance.now() - begin < milliseconds) {
    const start = performance.now();
    run();
    seconds.push((performance.now() - start) / 1e3);
  }
  seconds.sort((a, b) => a - b);
  return { best: seconds[0], median: seconds[seconds.length >> 1] };
}

/** What one line of shapes.txt measures: [name, floating-point operations, run]. */
const kinds = {
  base(addon, precision, rows, inFeatures, out) {
    const base = addon.packBase(noise(inFeatures * out), inFeatures, out, precision);
    const [x, dy, y, dx] = [
      noise(rows * inFeatures),
      noise(rows * out),
      zeros(rows * out),
      zeros(rows * inFeatures),
    ];
    const none = zeros(0);
    const operations = 2 * rows * inFeatures * out;
    return [
      ['x w', operations, () => addon.loraLinearForward(y, none, x, base, none, none, 1, rows, 0)],
      [
        'dy wᵀ',
        operations,
        () => addon.loraLinearBackward(dx, none, none, dy, x, none, base, none, none, 1, rows, 0),
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
        () => addon.matmul(c, p, q, 1, m, n, k, transposeA, transposeB, precision),
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
      ['forward', forward, () => addon.loraLinearForward(y, xa, x, base, a, b, 1, rows, rank)],
      [
        'backward',
        forward + 2 * rows * rank * (inFeatures + out),
        () => addon.loraLinearBackward(dx, da, db, dy, x, xa, base, a, b, 1, rows, rank),
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
          rows,
          dim,
          vocabulary,
          1 / rows,
          precision,
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
    const last = [batch, timeSteps, heads, heads, headDim, 1 / Math.sqrt(headDim), precision];
    const square = size * timeSteps; // two products of half a square each
    return [
      ['forward', 2 * square, () => addon.attentionForward(out, logSumExp, q, k, v, ...last)],
      [
        'backward',
        5 * square,
        () => addon.attentionBackward(dq, dk, dv, dout, q, k, v, out, logSumExp, ...last),
      ],
    ];
  },
};

/** Best of several short windows, in GFLOP/s: one long window is spoilt by whatever else the machine does meanwhile. */
export function measuredPeak(addon, precision) {
  return Math.max(...Array.from({ length: 12 }, () => addon.measurePeak(precision, 30)));
}

/** Rows of { instructionSet, precision, threads, product, shape, gflopsBest, gflopsMedian, peak, share }; share is median / peak. */
export function benchProducts({
  addon = loadNativeAddon(),
  instructionSets = addon.describe().instructionSets,
  precisions = ['float32', 'bfloat16'],
  threads = addon.describe().threadsMax,
  milliseconds = 300,
  onRow = () => {},
} = {}) {
  const lines = readFileSync(shapesFile, 'utf8')
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.startsWith('#'));
  const rows = [];
  for (const instructionSet of instructionSets) {
    addon.configure({ instructionSet, threads });
    for (const precision of precisions) {
      const peak = measuredPeak(addon, precision);
      for (const line of lines) {
        const [kind, ...sizes] = line.trim().split(/\s+/);
        for (const [name, operations, run] of kinds[kind](addon, precision, ...sizes.map(Number))) {
          const { best, median } = time(run, milliseconds);
          const row = {
            instructionSet,
            precision,
            threads,
            product: `${kind}: ${name}`,
            shape: sizes.join('x'),
            gflopsBest: operations / best / 1e9,
            gflopsMedian: operations / median / 1e9,
            peak,
            share: operations / median / 1e9 / peak,
          };
          rows.push(row);
          onRow(row);
        }
      }
    }
  }
  return rows;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [, , instructionSet, precision] = process.argv;
  console.log(
    'set         precision  product                shape             GFLOP/s median   best   peak  share',
  );
  benchProducts({
    ...(instructionSet && { instructionSets: [instructionSet] }),
    ...(precision && { precisions: [precision] }),
    onRow: (row) =>
      console.log(
        row.instructionSet.padEnd(12) +
          row.precision.padEnd(11) +
          row.product.padEnd(23) +
          row.shape.padEnd(18) +
          [row.gflopsMedian, row.gflopsBest, row.peak].map((value) => value.toFixed(0).padStart(9)).join('') +
          `${(100 * row.share).toFixed(0)}%`.padStart(7),
      ),
  });
}
