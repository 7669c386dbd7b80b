import { openDevice, presets } from '../../../engine/dist/index.js';
import { defaultRunSpec, resolveAuto, unmeasured } from '../../../engine/dist/plan/index.js';
import { Ours } from '../ours.mjs';
import { medianOf, shown, sidesOf } from '../sides.mjs';

export const name = 'small';
export const title =
  'llama-9m on the card and on this machine’s processor, and which of them `auto` takes (G9)';
export const seconds = 6;

/** Sequences and their length: what trains it well, and what is so little that the launches of a card take longer. */
const batches = [
  { batch: 16, time: 256 },
  { batch: 1, time: 32 },
];

export async function* run({ secondsLeft, open, text, found, ...options }) {
  const config = options.isModel
    ? sidesOf(options, 8)[0].config
    : { ...presets['llama-9m'], vocabSize: 32_000 };
  for (const shape of options.isModel ? batches.slice(1) : batches) {
    const what = `llama-9m, ${shape.batch * shape.time} tokens a step`;
    if (secondsLeft() <= 0) return yield { what, outcome: 'not run', figures: 'the time is over' };
    const side = { config, rank: 8, graph: 'merged', ...shape };
    const card = await speedOn(open('bfloat16'), text, side, options);
    const processor = await speedOn(
      await openDevice({ device: 'native', precision: 'auto' }),
      text,
      side,
      options,
    );
    const chosen = choiceFor(side, card.device);
    const faster = card.speed >= processor.speed ? 'cuda' : 'native';
    const isRight = chosen === faster;
    if (!options.isModel) found.set('auto is right', [...(found.get('auto is right') ?? []), isRight]);
    yield {
      what,
      outcome: 'measured',
      figures: `card ${shown(card.speed)}, processor ${shown(processor.speed)} k tokens/s; auto takes ${chosen}: ${isRight ? 'right' : 'wrong'}`,
    };
  }
}

async function speedOn(device, text, side, { isModel }) {
  const described = { ...unmeasured(device.description), memoryBytes: device.card?.memory().totalBytes };
  const ours = await Ours.open(device, text, side);
  await ours.steps(isModel ? 1 : 3);
  const { seconds } = await ours.steps(isModel ? 1 : 10);
  ours.close();
  return { speed: (side.batch * side.time) / medianOf(seconds), device: described };
}

/** What a server with this card would take for such a job. */
function choiceFor({ config, rank, batch, time, graph }, card) {
  const spec = defaultRunSpec({
    ...{ kind: 'lora', precision: 'auto', device: 'auto', model: config, adapter: { rank, graph } },
    batch: { sequenceCount: batch, sequenceLength: time, microBatchSequenceCount: batch },
  });
  return resolveAuto(spec, [card], 1);
}
