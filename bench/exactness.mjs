import { notAvailable, percent, table } from './table.mjs';

export const name = 'exactness';
export const title = 'Units for matrices against their models, bit for bit';
export const isFull = false;

/** Instruction sets that are emulated by plain arithmetic on any machine. */
const modeled = ['amx', 'neonBf16'];
const precisions = ['bfloat16', 'int8', 'nf4'];
/** Layers with an adapter: rows, in, out, rank. With whole tiles, and without any. */
const shapes = [
  [64, 128, 96, 16],
  [33, 130, 67, 5],
  [17, 257, 33, 8],
  [5, 96, 129, 3],
];
/** The product whose speed is compared with the peak: from llama-1b; 5461 is not a multiple of a tile. */
const wide = { rows: 4096, inFeatures: 2048, out: 5461 };
const windows = 5;

/** A set that the machine lacks has a reason instead of rows. */
export function run({ addon, instructionSet, threads }, product = wide) {
  const offered = addon.describe().instructionSets;
  try {
    return modeled.map((set) =>
      offered.includes(set)
        ? {
            set,
            failure: null,
            rows: precisions.map((precision) => compared(addon, { set, threads, precision, product })),
          }
        : { set, failure: 'not there', rows: [] },
    );
  } finally {
    addon.configure({ instructionSet, threads });
  }
}

function compared(addon, { set, threads, precision, product }) {
  const differing = shapes.flatMap((shape) => {
    const [hardware, model] = [set, `${set}-model`].map((instructionSet) => {
      addon.configure({ instructionSet, threads });
      return layer(addon, precision, shape);
    });
    return Object.keys(model)
      .filter((result) => Buffer.compare(bytesOf(hardware[result]), bytesOf(model[result])) !== 0)
      .map((result) => `${result} of ${shape.join('x')}`);
  });
  addon.configure({ instructionSet: set, threads });
  return { precision, differing, ...speed(addon, precision, product) };
}

/** y, x A, dx, dA and dB of a layer. */
function layer(addon, precision, [rows, inFeatures, out, rank]) {
  const random = generator();
  const [w, x, dy] = [inFeatures * out, rows * inFeatures, rows * out].map(random);
  const [a, b] = [inFeatures * rank, rank * out].map(random);
  const [y, xa, dx, da, db] = [rows * out, rows * rank, rows * inFeatures, a.length, b.length].map(
    (length) => new Float32Array(length),
  );
  const base = addon.packBase(w, inFeatures, out, precision);
  const of = { base, adapter: { rank, a, b, scale: 0.5 } };
  addon.linearForward(y, xa, x, of, rows);
  addon.linearBackward(dx, da, db, dy, x, xa, of, rows);
  addon.releaseBase(base);
  return { y, 'x A': xa, dx, dA: da, dB: db };
}

function speed(addon, precision, { rows, inFeatures, out }) {
  const random = generator();
  const base = addon.packBase(random(inFeatures * out), inFeatures, out, precision);
  const [x, y] = [random(rows * inFeatures), new Float32Array(rows * out)];
  let [peak, seconds] = [0, Infinity];
  for (let window = 0; window < windows; window++) {
    peak = Math.max(peak, addon.measurePeak(precision === 'nf4' ? 'bfloat16' : precision, 30));
    const beganAt = performance.now();
    addon.linearForward(y, null, x, { base, adapter: null }, rows);
    seconds = Math.min(seconds, (performance.now() - beganAt) / 1e3);
  }
  addon.releaseBase(base);
  const gflops = (2 * rows * inFeatures * out) / seconds / 1e9;
  return { peak, gflops, share: gflops / peak };
}

const bytesOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);

function generator() {
  let state = 1;
  const uniform = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5;
  return (length) => Float32Array.from({ length }, uniform);
}

export function report(sets) {
  const cells = sets.flatMap(({ set, rows }) =>
    rows.map(({ precision, differing, peak, gflops, share }) => [
      set,
      precision,
      differing.length === 0 ? 'equal' : `different: ${differing.join(', ')}`,
      gflops.toFixed(0),
      peak.toFixed(0),
      percent(share),
    ]),
  );
  const { rows, inFeatures, out } = wide;
  const found =
    cells.length === 0 ? '' : `\n\n${table(['set', 'base', 'bits', 'GFLOP/s', 'peak', 'share'], cells)}`;
  const missing = notAvailable(sets.map(({ set, failure }) => ({ label: set, failure })));
  return `Forward and backward of layers with an adapter over ${precisions.join(', ')} bases, ${shapes.length} shapes; the speed is that of x w, ${rows}x${inFeatures}x${out}.${found}${missing}`;
}
