import { Ours } from '../ours.mjs';
import { sidesOf } from '../sides.mjs';

export const name = 'merges';
export const title = 'Time of a restart in steps: merge, pack and fresh adapters (G7)';

export async function* run({ secondsLeft, open, text, ...options }) {
  const side = sidesOf(options, 128).at(-1);
  if (secondsLeft() <= 0) return yield { what: title, outcome: 'not run', figures: 'the time is over' };
  const ours = await Ours.open(open('bfloat16'), text, side);
  await ours.steps(2);
  const { seconds } = await ours.steps(options.isModel ? 1 : 5);
  await ours.merge(); // the first allocates
  const merge = await ours.merge();
  const step = seconds.sort((a, b) => a - b)[seconds.length >> 1];
  ours.close();
  yield {
    what: side.preset,
    outcome: 'measured',
    figures: `${(1e3 * merge).toFixed(0)} ms, ${(merge / step).toFixed(2)} steps of ${(1e3 * step).toFixed(1)} ms`,
  };
}
