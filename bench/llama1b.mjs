import { measureGroup, stepTable } from './group.mjs';

export const name = 'llama1b';
export const title = 'llama-1b: three steps and a merge in its memory, and its speed';
export const isFull = true;

const preset = 'llama-1b';
const rank = 128;
/** A step takes minutes here, so a whole model takes only three. */
const wholeModel = { warmUps: 1, repeats: 2 };
/** Full-rank training of 24 layers needs more memory than most machines have: its speed is extrapolated from two depths, see `atDepth`. */
const depths = [2, 4];

export async function run(session) {
  const ours = [{}, { precision: 'int8Base' }].map((mode) => ({ engine: 'relora', preset, rank, ...mode }));
  // The last of ours is for machines with little memory: activations are recomputed.
  const sides = [...ours, { ...ours[1], recompute: true }, { engine: 'pytorch', preset, rank }];
  // One at a time: each may need most of the memory.
  const whole = [];
  for (const side of sides) whole.push(...(await measureGroup(session, [side], wholeModel)));
  const shallow = [];
  for (const layerCount of depths) {
    const group = [{ engine: 'relora', preset, rank: 0 }, ...ours].map((side) => ({ ...side, layerCount }));
    shallow.push(...(await measureGroup(session, group, { warmUps: 2, repeats: 3 })));
  }
  return { whole, shallow };
}

/**
 * Seconds of a step with `layerCount` layers of equal cost: from a line through the two measured depths. Null unless both were measured.
 */
export function atDepth(shallow, layerCount, { rank, precision }) {
  const [few, more] = depths.map((depth) =>
    shallow.find(
      (row) =>
        row.failure === null &&
        row.layerCount === depth &&
        row.rank === rank &&
        (precision === undefined ? row.precision !== 'int8Base' : row.precision === precision),
    ),
  );
  if (few === undefined || more === undefined) return null;
  const perLayer = (more.secondsBest - few.secondsBest) / (more.layerCount - few.layerCount);
  return few.secondsBest + (layerCount - few.layerCount) * perLayer;
}

export function report({ whole, shallow }) {
  return `2048 x 5461, 24 layers, vocabulary 32000, 8 sequences of 256 tokens. One warm-up and two steps of each, alone, and then merges; recomputed:
activations are made again in the backward pass, as a machine of 8 GiB needs it:

${stepTable(whole)}

The same layers in models of ${depths.join(' and ')}, best of 3 after 2 warm-ups in turn; the step of 24 layers lies on the line through both:

${stepTable(shallow)}`;
}
