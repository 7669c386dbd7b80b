import { casesOf, Bench } from '../../../engine/dist/conformance/index.js';
import { begin, disposeRun, follow, goldenSpec, openText } from './runs.mjs';

export const name = 'memory';
export const title =
  'Out of memory with figures, after which the card works; the same memory after many steps';
export const seconds = 3;

export async function* run({ open, folder }) {
  const device = open('bfloat16');
  const { totalBytes } = device.card.memory();
  const buffers = [];
  let fault = null;
  try {
    // Allocates an eighth at a time: the ninth at the latest does not fit.
    for (let i = 0; i < 16; i++) buffers.push(device.alloc(Math.floor(totalBytes / 8 / 4)));
  } catch (error) {
    fault = error;
  }
  for (const buffer of buffers) device.release(buffer);
  device.trim();
  const isNamed = fault?.reason === 'DEVICE_OUT_OF_MEMORY' && /\d{6}/.test(fault.message);
  yield {
    what: `${buffers.length} eighths of the memory fit, one more does not`,
    outcome: isNamed ? 'ok' : 'FAULT',
    figures: fault === null ? 'everything fitted' : fault.message,
  };
  const one = casesOf('larger').find(({ call }) => call === 'mlpHalf');
  const found = await one.run(new Bench(device));
  const isFinite = [...found.values()].every((values) => values.every((value) => Number.isFinite(value)));
  yield { what: 'the card works afterwards', outcome: isFinite ? 'ok' : 'FAULT', figures: one.name };
  device.close();

  const other = open('bfloat16');
  const dataset = await openText(folder);
  const run = await begin(other, goldenSpec, dataset, folder);
  const counts = new Map();
  await follow(run, (event) => {
    if (event.kind === 'step') counts.set(event.step, other.card.memory());
    return false;
  });
  disposeRun(run);
  other.close();
  await dataset.close();
  const [early, late] = [counts.get(12), counts.get(17)];
  yield {
    what: 'allocations of the driver in the last cycle',
    outcome: early.allocationCount === late.allocationCount ? 'ok' : 'FAULT',
    figures: `${early.allocationCount} after step 12, ${late.allocationCount} after step 17, ${late.peakBytes} bytes at most`,
  };
}
