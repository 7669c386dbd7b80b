import {
  Bench,
  casesOf,
  checkCase,
  cudaKernels,
  optimizerCases,
  updateCases,
} from '../../../engine/dist/conformance/index.js';
import { openDevice } from '../../../engine/dist/index.js';

export const name = 'conformance';
export const title = 'Every call of a device against its definition, in float32 and bfloat16';
export const seconds = 30;

/** As in test/engine/conformance. */
const tolerances = { float32: 2e-5, bfloat16: 0.03, fp8: 0.12 };
/** Variants of a half that an FP8 base supports. */
const fp8Names = ['separate', 'separate, made again', 'separate, B alone', 'frozen, its gradient looked at'];

export async function* run({ open, isModel, secondsLeft }) {
  const definitions = await openDevice({ device: 'reference', precision: 'float32' });
  const sizes = isModel ? ['larger'] : ['small', 'larger'];
  const expected = new Map();
  const wantedOf = async (one) => {
    if (!expected.has(one)) expected.set(one, await one.run(new Bench(definitions)));
    return expected.get(one);
  };
  const cases = [...sizes.flatMap((size) => casesOf(size)), ...updateCases, ...optimizerCases];
  // The model is a hundred times slower than a card, so the rehearsal on it uses one case of each call in bfloat16, and one in FP8.
  const precisions = Object.entries(tolerances).filter(([name]) => !isModel || name !== 'float32');
  for (const [precision, tolerance] of precisions) {
    let device;
    try {
      device = open(precision);
    } catch (error) {
      if (error.reason !== 'DEVICE_TOO_OLD') throw error;
      yield { what: precision, outcome: 'not run', figures: error.message };
      continue;
    }
    // In the smallest shapes rounding to 8 bits dominates.
    const isOwn = ({ name }) =>
      precision === 'fp8'
        ? fp8Names.some((way) => name.endsWith(`Half ${way} larger`))
        : precision === 'float32' || !name.endsWith(' small');
    const all = cases.filter(isOwn);
    const oneOfEach = [...new Map(all.map((one) => [one.call, one])).values()];
    const own = !isModel ? all : precision === 'fp8' ? oneOfEach.slice(0, 1) : oneOfEach;
    for (const one of own) {
      const what = `${one.name}, ${precision}`;
      if (secondsLeft() <= 0) {
        yield { what: `${what} and what follows`, outcome: 'not run', figures: 'the time is over' };
        device.close();
        return;
      }
      const wanted = await wantedOf(one);
      const { ran, wrong, worst, limit, changed, lostCount } = await checkCase(
        device,
        one,
        wanted,
        tolerance,
      );
      const products = precision === 'float32' ? precision : 'bfloat16';
      const missing = cudaKernels(one, products, device.blas !== null).filter(
        (kernel) => !ran.includes(kernel),
      );
      if (precision === 'fp8' && !ran.some((kernel) => kernel.includes('e4m3')))
        missing.push('a product of e4m3');
      const faults = [
        ...wrong.map(({ result, difference }) => `${result} differs by ${difference.toExponential(1)}`),
        ...missing.map((kernel) => `${kernel} did not run`),
        ...changed.map((result) => `${result} has other bits again`),
        ...(lostCount === 0 ? [] : [`${lostCount} buffers were not given back`]),
      ];
      yield {
        what,
        outcome: faults.length === 0 ? 'ok' : 'FAULT',
        figures: faults.length === 0 ? `${worst.toExponential(1)} of ${limit}` : faults.join('; '),
      };
    }
    device.close();
  }
}
