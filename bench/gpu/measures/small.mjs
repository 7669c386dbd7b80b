import { openDevice, presets } from '../../../engine/dist/index.js';
import { Ours } from '../ours.mjs';
import { shown } from '../sides.mjs';

export const name = 'small';
export const title = 'llama-9m on the card and on this machine’s processor (G9)';

export async function* run({ secondsLeft, open, text, isModel }) {
  if (isModel) return yield { what: title, outcome: 'not run', figures: 'no card' };
  const config = { ...presets['llama-9m'], vocabSize: 32_000 };
  const side = { config, rank: 16, batch: 16, time: 256, graph: 'merged' };
  const devices = {
    card: () => open('bfloat16'),
    processor: () => openDevice({ device: 'native', precision: 'auto' }),
  };
  for (const [what, opened] of Object.entries(devices)) {
    if (secondsLeft() <= 0) return yield { what, outcome: 'not run', figures: 'the time is over' };
    const ours = await Ours.open(await opened(), text, side);
    await ours.steps(2);
    const { seconds } = await ours.steps(10);
    const speed = (side.batch * side.time) / seconds.sort((a, b) => a - b)[seconds.length >> 1];
    yield { what: `llama-9m, ${what}`, outcome: 'measured', figures: `${shown(speed)} k tokens/s` };
    ours.close();
  }
}
