import { Ours } from '../ours.mjs';
import { medianOf, sidesOf } from '../sides.mjs';

export const name = 'merges';
export const title =
  'Time of a restart in steps: probe, merge, pack, fresh adapters, and a probe that must agree (G7)';
export const seconds = 10;

export async function* run({ open, text, found, ...options }) {
  const side = sidesOf(options, 128).at(-1);
  const ours = await Ours.open(open('bfloat16'), text, side);
  await ours.steps(2);
  const step = medianOf((await ours.steps(options.isModel ? 1 : 5)).seconds);
  await ours.restart(); // the first allocates
  await ours.steps(1); // what is merged is not zero
  const restart = await ours.restart();
  ours.close();
  found.set(`${side.preset} merge, pack and proof at a restart`, restart / step);
  yield {
    what: side.preset,
    outcome: 'measured',
    figures: `${(1e3 * restart).toFixed(0)} ms, ${(restart / step).toFixed(2)} steps of ${(1e3 * step).toFixed(1)} ms`,
  };
}
