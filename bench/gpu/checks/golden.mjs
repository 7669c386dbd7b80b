import { openDevice } from '../../../engine/dist/index.js';
import { begin, disposeRun, follow, goldenSpec, ofKind, openText } from './runs.mjs';

export const name = 'golden';
export const title = 'Losses of a whole run against the definitions, and the proof of each merge';
export const seconds = 8;

/** As in test/engine/conformance.runs.test.ts. */
const tolerances = { float32: 1e-5, bfloat16: 0.02 };

export async function* run({ open, folder, isModel }) {
  const dataset = await openText(folder);
  const definitions = await openDevice({ device: 'reference', precision: 'float32' });
  const wanted = await lossesAndRestarts(definitions, dataset, folder);
  const precisions = Object.entries(tolerances).filter(([name]) => !isModel || name === 'bfloat16');
  for (const [precision, tolerance] of precisions) {
    const device = open(precision);
    const found = await lossesAndRestarts(device, dataset, folder);
    device.close();
    const worst = Math.max(...found.losses.map((loss, step) => Math.abs(loss - wanted.losses[step])));
    const isComplete = found.losses.length === wanted.losses.length;
    yield {
      what: `losses of ${wanted.losses.length} steps, ${precision}`,
      outcome: isComplete && worst <= tolerance ? 'ok' : 'FAULT',
      figures: `differ by ${worst.toExponential(1)} of ${tolerance}, the last is ${found.losses.at(-1)}`,
    };
    for (const { step, deltaNorm, logitChangeMax, logitChangeTolerance } of found.restarts)
      yield {
        what: `merge at step ${step}, ${precision}`,
        outcome: deltaNorm > 0 && logitChangeMax < logitChangeTolerance ? 'ok' : 'FAULT',
        figures: `norm ${deltaNorm.toPrecision(3)}, a logit changes by ${logitChangeMax.toExponential(1)} of ${logitChangeTolerance.toExponential(1)}`,
      };
  }
  await dataset.close();
}

async function lossesAndRestarts(device, dataset, folder) {
  const run = await begin(device, goldenSpec, dataset, folder);
  const events = await follow(run);
  disposeRun(run);
  return { losses: ofKind(events, 'step').map(({ loss }) => loss), restarts: ofKind(events, 'restart') };
}
