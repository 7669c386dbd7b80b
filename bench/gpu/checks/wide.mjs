import { Bench, casesOf, checkCase, wideCases } from '../../../engine/dist/conformance/index.js';
import { openDevice } from '../../../engine/dist/index.js';

export const name = 'wide';
export const title =
  'Halves of a block at the sizes of llama-60m, and at 2,049 positions, against the native device';
export const seconds = 15;

export async function* run({ open, isModel, secondsLeft }) {
  // The model would take minutes for wide ones.
  const cases = isModel
    ? casesOf('larger').filter(({ name }) => name === 'mlpHalf merged larger')
    : wideCases();
  const tolerances = isModel ? { bfloat16: 0.03 } : { bfloat16: 0.03, float32: 1e-4 };
  const definitions = await openDevice({ device: 'native', precision: 'float32' });
  for (const [precision, tolerance] of Object.entries(tolerances)) {
    const device = open(precision);
    for (const one of cases) {
      if (secondsLeft() <= 0)
        return yield {
          what: `${one.name}, ${precision}, and the rest`,
          outcome: 'not run',
          figures: 'the time is over',
        };
      const wanted = await one.run(new Bench(definitions));
      const { wrong, worst, changed } = await checkCase(device, one, wanted, tolerance);
      const faults = [
        ...wrong.map(({ result, difference }) => `${result} differs by ${difference.toExponential(1)}`),
        ...changed.map((result) => `${result} has other bits again`),
      ];
      const isWell = faults.length === 0;
      const figures = isWell ? `${worst.toExponential(1)} of ${tolerance}` : faults.join('; ');
      yield { what: `${one.name}, ${precision}`, outcome: isWell ? 'ok' : 'FAULT', figures };
    }
    device.close();
  }
}
