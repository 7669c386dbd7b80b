import { Ours } from '../ours.mjs';
import { medianOf, sidesOf } from '../sides.mjs';

export const name = 'replays';
export const title =
  'Share of a step that the host takes: one less the time of a captured step that runs again (G8)';
export const seconds = 8;

export async function* run({ secondsLeft, open, text, found, ...options }) {
  for (const side of sidesOf(options, 128).slice(0, 2)) {
    if (secondsLeft() <= 0)
      return yield { what: side.preset, outcome: 'not run', figures: 'the time is over' };
    const ours = await Ours.open(open('bfloat16'), text, side);
    await ours.steps(3);
    const live = medianOf((await ours.steps(options.isModel ? 1 : 8)).seconds);
    const replay = await ours.replayed(options.isModel ? 1 : 8);
    ours.close();
    const percent = 100 * (1 - replay / live);
    found.set(`${side.preset} share of a step that the host takes`, percent);
    yield {
      what: side.preset,
      outcome: 'measured',
      figures: `${percent.toFixed(1)} %: ${(1e3 * live).toFixed(2)} ms live, ${(1e3 * replay).toFixed(2)} ms replayed`,
    };
  }
}
