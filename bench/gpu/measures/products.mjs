import { performance } from 'node:perf_hooks';
import { Scope } from '../../../engine/dist/device/cuda/scope.js';
import { newMatrix } from '../../../engine/dist/device/cuda/matrix.js';
import { MatrixCalls } from '../../../engine/dist/device/cuda/matrixCalls.js';

export const name = 'products';
export const title = 'Products of the presets alone';
export const seconds = 4;

/** Rows, inner size, columns of y = x w. */
const shapes = {
  'llama-60m q, k, v': [32_768, 512, 1536],
  'llama-60m gate, up': [32_768, 512, 2752],
  'llama-350m q, k, v': [16_384, 1024, 3072],
  'llama-350m gate, up': [16_384, 1024, 5504],
  'llama-1b q, k, v': [16_384, 2048, 6144],
  'llama-1b gate, up': [16_384, 2048, 11_008],
  'llama-1b down': [16_384, 5504, 2048],
  'thin: x A': [16_384, 2048, 128],
};
const ways = {
  'x w': (product, x, w, y) => product(y, x, w),
  'dy wᵀ': (product, x, w, y) => product(x, y, w, { transposeB: true }),
  'xᵀ dy': (product, x, w, y) => product(w, x, y, { transposeA: true }),
};

export async function* run({ open, isModel, secondsLeft }) {
  const device = open('bfloat16');
  const calls = new MatrixCalls(device, device.kernels, device.blas);
  for (const [what, shape] of Object.entries(isModel ? { tiny: [64, 32, 48] } : shapes)) {
    const [rows, inner, columns] = shape;
    if (secondsLeft() <= 0) return yield { what, outcome: 'not run', figures: 'the time is over' };
    const scope = new Scope(device);
    const [x, w, y] = [
      [rows, inner],
      [inner, columns],
      [rows, columns],
    ].map(([height, width]) => {
      const matrix = newMatrix(scope, height, width, 'bf16');
      device.card.fill(matrix.address, 0x3c, 2 * matrix.stride * height); // 0.0115 throughout
      return matrix;
    });
    const figures = [];
    for (const [way, call] of Object.entries(ways)) {
      const dw = { ...newMatrix(scope, inner, columns, 'float') };
      const again = () => call((to, ...of) => calls.product(to === w ? dw : to, ...of), x, w, y);
      const seconds = await timed(device, again, isModel);
      figures.push(`${way} ${((2 * rows * inner * columns) / seconds / 1e12).toFixed(0)}`);
    }
    scope.end();
    yield {
      what: `${what}: ${shape.join(' x ')}`,
      outcome: 'measured',
      figures: `TFLOP/s: ${figures.join(', ')}`,
    };
  }
  device.close();
}

async function timed(device, call, isModel) {
  call();
  await device.card.wait();
  let count = 1;
  for (;;) {
    const begin = performance.now();
    for (let i = 0; i < count; i++) call();
    await device.card.wait();
    const seconds = (performance.now() - begin) / 1e3;
    if (seconds > 0.03 || isModel) return seconds / count;
    count *= 4;
  }
}
