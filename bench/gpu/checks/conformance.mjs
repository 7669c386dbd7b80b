import {
  Bench,
  casesOf,
  checkCase,
  cudaKernels,
  updateCases,
} from '../../../engine/dist/conformance/index.js';
import { openDevice } from '../../../engine/dist/index.js';

export const name = 'conformance';
export const title = 'Every call of a device against its definition, in float32 and bfloat16';

/** As test/engine/conformance has them. */
const tolerances = { float32: 2e-5, bfloat16: 0.03 };

export async function* run({ open, isModel, secondsLeft }) {
  const definitions = await openDevice({ device: 'reference', precision: 'float32' });
  const sizes = isModel ? ['larger'] : ['small', 'larger'];
  const cases = [...sizes.flatMap((size) => casesOf(size)), ...updateCases];
  for (const [precision, tolerance] of Object.entries(tolerances)) {
    const device = open(precision);
    // In the smallest shapes a rounding to 8 bits is most of the value.
    const own = cases.filter(({ name }) => precision === 'float32' || !name.endsWith(' small'));
    for (const one of own) {
      const what = `${one.name}, ${precision}`;
      if (secondsLeft() <= 0) {
        yield { what: `${what} and what follows`, outcome: 'not run', figures: 'the time is over' };
        device.close();
        return;
      }
      const wanted = await one.run(new Bench(definitions));
      const { ran, wrong, worst, limit, changed, lostCount } = await checkCase(
        device,
        one,
        wanted,
        tolerance,
      );
      const missing = cudaKernels(one, precision, device.blas !== null).filter(
        (kernel) => !ran.includes(kernel),
      );
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
