import { newMatrix, tight } from '../../../engine/dist/device/cuda/matrix.js';
import { MatrixCalls } from '../../../engine/dist/device/cuda/matrixCalls.js';
import { Scope } from '../../../engine/dist/device/cuda/scope.js';

export const name = 'products';
export const title = 'Products at the sizes of the presets, entries against float64';
export const seconds = 8;

/** Rows, inner size, columns: from llama-60m, 350m and 1b, plus odd and thin ones. */
const shapes = [
  [4096, 512, 1376],
  [4096, 1024, 2736],
  [4096, 2048, 5461],
  [2048, 5461, 2048],
  [4096, 2048, 128],
  [4096, 128, 2048],
  [1000, 333, 777],
];
const modelShapes = [
  [130, 70, 90],
  [33, 129, 17],
];
const ways = { 'x w': {}, 'dy wᵀ': { transposeB: true }, 'xᵀ dy': { transposeA: true } };
/** Number of entries that are checked, spread over the matrix and including the last one. */
const lookedAt = 400;

export async function* run({ open, isModel, secondsLeft }) {
  const device = open('bfloat16');
  const calls = new MatrixCalls(device, device.kernels, device.blas);
  for (const [m, k, n] of isModel ? modelShapes : shapes) {
    const values = [numbers(m * k, 1), numbers(k * n, 2)];
    for (const [way, options] of Object.entries(ways)) {
      if (secondsLeft() <= 0)
        return yield { what: 'the rest', outcome: 'not run', figures: 'the time is over' };
      const figures = await check(device, calls, { m, k, n }, values, options);
      yield { what: `${way}, ${m} x ${k} x ${n}`, ...figures };
    }
  }
  device.close();
}

async function check(device, calls, { m, k, n }, [a, b], { transposeA = false, transposeB = false }) {
  const scope = new Scope(device);
  const rounded = (values, rows, columns) => {
    const floats = scope.take(4 * values.length);
    device.card.upload(floats, values);
    return calls.as('bf16', tight(floats, rows, columns), scope);
  };
  const left = transposeA ? rounded(a, k, m) : rounded(a, m, k);
  const right = transposeB ? rounded(b, n, k) : rounded(b, k, n);
  const to = newMatrix(scope, m, n, 'float');
  calls.product(to, left, right, { transposeA, transposeB });
  const found = new Float32Array(m * to.stride);
  device.card.download(found, to.address);
  scope.end();
  let worst = 0;
  for (let look = 0; look < lookedAt; look++) {
    const place = look === lookedAt - 1 ? m * n - 1 : (look * 7919 * 31) % (m * n);
    const [row, column] = [Math.floor(place / n), place % n];
    let [sum, size] = [0, 0];
    for (let i = 0; i < k; i++) {
      const term =
        a[transposeA ? i * m + row : row * k + i] * b[transposeB ? column * k + i : i * n + column];
      sum += term;
      size += Math.abs(term);
    }
    worst = Math.max(worst, Math.abs(found[row * to.stride + column] - sum) / size || 0);
  }
  // For float32 sums of k products in any order; a card may truncate an addend relative to a larger one.
  const limit = 4 * Math.sqrt(k) * 2 ** -24 + 2 ** -20;
  const shown = `${worst.toExponential(1)} of ${limit.toExponential(1)}`;
  return { outcome: worst <= limit ? 'ok' : 'FAULT', figures: shown };
}

/** In [-1, 1) with eight significant bits, so that operands are exact in every type. */
function numbers(length, seed) {
  let state = seed * 2654435761;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 24) / 128 - 1;
  });
}
