import { performance } from 'node:perf_hooks';
import { presets } from '../../engine/dist/plan/index.js';
import { Ours } from './ours.mjs';
import { familyOf, nameOf, patienceOf } from './peers.mjs';

const time = 512;
/** Sequences per step for each preset. */
const batches = { 'llama-60m': 64, 'llama-350m': 32, 'llama-1b': 32 };

/** What is measured: the presets at these batches, or something tiny on the model. */
export function sidesOf({ isModel, presets: wanted }, rank) {
  if (isModel) {
    const config = {
      ...presets['llama-9m'],
      hiddenSize: 32,
      intermediateSize: 43,
      numHiddenLayers: 1,
      vocabSize: 257,
    };
    return [{ preset: 'tiny', config, rank: rank === 0 ? 0 : 8, batch: 2, time: 32, graph: 'merged' }];
  }
  return Object.entries(batches)
    .filter(([preset]) => wanted?.includes(preset) ?? true)
    .map(([preset, batch]) => {
      return {
        preset,
        config: { ...presets[preset], vocabSize: 32_000 },
        rank,
        batch,
        time,
        graph: 'merged',
      };
    });
}

/** Each side with a context whose time is its share of what is left, so that a slow one takes none from the others. */
export function* inTurn(context, sides) {
  for (const [i, side] of sides.entries()) {
    const end = performance.now() + (1e3 * context.secondsLeft()) / (sides.length - i);
    yield [side, { ...context, secondsLeft: () => (end - performance.now()) / 1e3 }];
  }
}

/**
 * Rows of our side, and of variants of PyTorch, which take turns with it one after another. What fails becomes a row, and the others are
 * still measured. `found` gets our speed as `PRESET WHAT`, the highest speed of each kind of variant as `PRESET PyTorch KIND`, and the
 * lowest of our ratios to them as `PRESET WHAT to PyTorch`.
 * @param {string} what describes our side
 * @param {import('./peers.mjs').Variant[]} variants
 */
export async function* compared(context, side, { precision, what, variants = [] }) {
  const { open, peer, text, found, isModel, secondsLeft } = context;
  if (secondsLeft() <= 0)
    return yield { what: `${side.preset}, ${what}`, outcome: 'not run', figures: 'the time is over' };
  const openPeer = (variant) => attempt(() => peer.open(text, side, variant, patienceOf(context)));
  const [first = null, ...others] = peer.isThere ? variants : [];
  // PyTorch compiles while our weights are made.
  const [ours, theirs] = await Promise.all([
    attempt(() => Ours.open(open(precision), text, side)),
    first && openPeer(first),
  ]);
  await takeTurns(first === null ? [ours] : [ours, theirs], isModel);
  yield ourRow(side, what, ours, found);
  if (first !== null) yield await theirRow(first, theirs);
  for (const variant of others) {
    const opened = secondsLeft() > 0 ? await openPeer(variant) : { reason: 'the time is over' };
    await takeTurns([ours, opened], isModel);
    yield await theirRow(variant, opened);
  }
  await ours.side?.close();

  async function theirRow(variant, opened) {
    const name = `${side.preset}, ${nameOf(variant)}`;
    if (opened.side === undefined) return { what: name, outcome: 'not measured', figures: opened.reason };
    const { peakBytes } = opened.side;
    await attempt(() => opened.side.close());
    const speed = speedOf(side, opened);
    keep(found, `${side.preset} PyTorch ${familyOf(variant)}`, speed, Math.max);
    const figures = `${speedShown(speed, opened)}, ${gigabytes(peakBytes)} GB`;
    if (ours.side === undefined) return { what: name, outcome: 'measured', figures };
    const ratio = speedOf(side, ours) / speed;
    // FP8 is another precision than ours.
    if (variant.kind !== 'float8') keep(found, `${side.preset} ${what} to PyTorch`, ratio, Math.min);
    return { what: name, outcome: 'measured', figures: `${figures}, ours is ${ratio.toFixed(3)} x of it` };
  }
}

function ourRow(side, what, ours, found) {
  const name = `${side.preset}, ${what}`;
  if (ours.side === undefined) return { what: name, outcome: 'FAULT', figures: ours.reason };
  const speed = speedOf(side, ours);
  keep(found, `${side.preset} ${what}`, speed, (now, before) => before);
  const figures = `${speedShown(speed, ours)}, ${gigabytes(ours.side.peakBytes)} GB, loss ${ours.loss.toFixed(3)}`;
  return { what: name, outcome: 'measured', figures };
}

/** Fills `seconds` of steps, in turns, so that what happens to the clock of the card happens to both; closes what fails. */
async function takeTurns(sides, isModel) {
  for (const one of sides) one.seconds = [];
  for (const [round, count] of (isModel ? [1, 1] : [3, 4, 4, 4]).entries()) {
    for (const one of sides) {
      if (one.side === undefined) continue;
      try {
        const { seconds, loss } = await one.side.steps(count);
        if (round > 0) one.seconds.push(...seconds);
        one.loss = loss;
      } catch (error) {
        await attempt(() => one.side.close());
        delete one.side;
        one.reason = error.message;
      }
    }
  }
}

const keep = (found, name, value, choose) => found.set(name, choose(value, found.get(name) ?? value));

const speedOf = ({ batch, time }, { seconds }) => (batch * time) / medianOf(seconds);

const speedShown = (speed, { seconds }) => `${shown(speed)} k tokens/s (${spread(seconds)})`;

export const medianOf = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

async function attempt(open) {
  try {
    return { side: await open() };
  } catch (error) {
    return { reason: error.message };
  }
}

export const shown = (tokensPerSecond) => (tokensPerSecond / 1e3).toFixed(tokensPerSecond > 1e5 ? 0 : 2);
export const gigabytes = (bytes) => (bytes / 1e9).toFixed(2);
export const spread = (seconds) => {
  const sorted = [...seconds].sort((a, b) => a - b).map((each) => (1e3 * each).toFixed(1));
  return `${sorted[0]} to ${sorted.at(-1)} ms`;
};
