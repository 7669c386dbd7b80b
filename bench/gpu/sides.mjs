import { presets } from '../../engine/dist/plan/index.js';
import { Ours } from './ours.mjs';
import { Peer } from './peers.mjs';

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

/**
 * Rows of our side alternating with PyTorch's `kind`; if one of them fails, the other is still measured.
 * @param {string} what describes our side
 */
export async function* compared(context, side, { precision, kind, what }) {
  const { open, peer, text, found, isModel, secondsLeft } = context;
  const name = `${side.preset}, ${what}`;
  if (secondsLeft() <= 0) return yield { what: name, outcome: 'not run', figures: 'the time is over' };
  const ours = await attempt(() => Ours.open(open(precision), text, side));
  const theirs =
    kind === null
      ? { reason: null }
      : peer.command === null
        ? { reason: peer.reason }
        : await attempt(() => Peer.open(peer, text, side, kind));
  const sides = [ours, theirs].map((opened) => ({ ...opened, seconds: [] }));
  const perRound = isModel ? 1 : 4;
  for (let round = -1; round < (isModel ? 1 : 4); round++) {
    for (const one of sides) {
      if (one.side === undefined) continue;
      try {
        const { seconds, loss } = await one.side.steps(round < 0 ? Math.min(3, perRound) : perRound);
        if (round >= 0) one.seconds.push(...seconds);
        one.loss = loss;
      } catch (error) {
        Object.assign(one, { reason: error.message });
        await one.side.close();
        delete one.side;
      }
    }
  }
  const tokens = side.batch * side.time;
  const speedOf = ({ seconds }) => tokens / [...seconds].sort((a, b) => a - b)[seconds.length >> 1];
  const [us, them] = sides;
  if (us.side === undefined) yield { what: name, outcome: 'FAULT', figures: us.reason };
  else {
    found.set(name, speedOf(us));
    yield {
      what: name,
      outcome: 'measured',
      figures: `${shown(speedOf(us))} k tokens/s (${spread(us.seconds)}), ${gigabytes(us.side.peakBytes)} GB, loss ${us.loss.toFixed(3)}`,
    };
  }
  if (kind !== null && them.side === undefined)
    yield { what: `${side.preset}, PyTorch ${kind}`, outcome: 'not run', figures: them.reason };
  if (them.side !== undefined) {
    found.set(`${side.preset}, PyTorch ${kind}`, speedOf(them));
    const ratio =
      us.side === undefined ? '' : `, ours is ${(speedOf(us) / speedOf(them)).toFixed(3)} x of it`;
    yield {
      what: `${side.preset}, PyTorch ${kind}`,
      outcome: 'measured',
      figures: `${shown(speedOf(them))} k tokens/s (${spread(them.seconds)}), ${gigabytes(them.side.peakBytes)} GB${ratio}`,
    };
  }
  for (const { side: opened } of sides) await opened?.close();
}

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
