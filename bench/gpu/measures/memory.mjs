import { Ours, reservePlan } from '../ours.mjs';
import { gigabytes, medianOf, shown, sidesOf } from '../sides.mjs';

export const name = 'memory';
export const title = 'Peak of device memory at 8,192 tokens a step, at full speed and at its least (G6)';

export const seconds = 12;

export async function* run({ secondsLeft, open, text, found, ...options }) {
  const side = { ...sidesOf(options, 128).at(-1), ...(options.isModel ? {} : { batch: 16 }) };
  const kinds = {
    'at full speed': {},
    'recomputed, moments in eight bits, micro-batches of 4': {
      recompute: true,
      momentType: 'int8',
      microBatch: Math.min(4, side.batch),
    },
  };
  for (const [what, more] of Object.entries(kinds)) {
    if (secondsLeft() <= 0) return yield { what, outcome: 'not run', figures: 'the time is over' };
    const device = open('bfloat16');
    const planned = reservePlan(device, { ...side, ...more });
    const ours = await Ours.open(device, text, { ...side, ...more });
    await ours.steps(1);
    const { seconds } = await ours.steps(options.isModel ? 1 : 3);
    const speed = (side.batch * side.time) / medianOf(seconds);
    const place = what === 'at full speed' ? what : 'at its least';
    found.set(`${side.preset} ReLoRA, 8,192 tokens, ${place}`, ours.peakBytes / 1e9);
    yield {
      what: `${side.preset}, ${side.batch * side.time} tokens, ${what}`,
      outcome: 'measured',
      figures: `${gigabytes(ours.peakBytes)} GB of ${gigabytes(planned)} planned, ${shown(speed)} k tokens/s`,
    };
    ours.close();
  }
}
