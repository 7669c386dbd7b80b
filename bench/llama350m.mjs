import { measureGroup, planTable, stepTable } from './group.mjs';

export const name = 'llama350m';
export const title = 'Whole steps of llama-350m, PyTorch beside it';
export const isFull = true;

const preset = 'llama-350m';
const sides = [
  { engine: 'relora', preset, rank: 0 },
  { engine: 'relora', preset, rank: 128 },
  { engine: 'relora', preset, rank: 128, precision: 'int8Base' },
  { engine: 'pytorch', preset, rank: 128 },
];

export async function run(session) {
  return await measureGroup(session, sides);
}

export function report(rows) {
  return `8 sequences of 256 tokens, best and median of 7 steps after 3 warm-ups in turn.

${stepTable(rows)}

What \`relora estimate\` would have said:

${planTable(rows)}`;
}
