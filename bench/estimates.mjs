import { measureGroup, planTable } from './group.mjs';

export const name = 'estimates';
export const title = 'The plan against measured memory and time';
export const isFull = true;

const ours = (preset, rank, precision, changes) => ({
  engine: 'relora',
  preset,
  rank,
  precision,
  ...changes,
});

/** Variations that the estimates have to cover: sizes, ranks, precisions, recomputation, micro-batches. */
const sides = [
  ours('demo', 0, 'float32'),
  ours('demo', 24, 'bfloat16'),
  ours('llama-9m', 16, 'bfloat16'),
  ours('llama-20m', 32, 'float32'),
  ours('llama-60m', 0, 'bfloat16'),
  ours('llama-60m', 64, 'bfloat16'),
  ours('llama-60m', 128, 'bfloat16'),
  ours('llama-60m', 128, 'float32'),
  ours('llama-60m', 128, 'int8Base'),
  ours('llama-60m', 128, 'bfloat16', { recompute: true }),
  ours('llama-60m', 128, 'bfloat16', { microBatch: 2 }),
  ours('llama-130m', 96, 'int8Base'),
  ours('llama-350m', 128, 'int8Base'),
];

/** One after another: together they would not fit most machines. */
export async function run(session) {
  const rows = [];
  for (const side of sides) rows.push(...(await measureGroup(session, [side], { warmUps: 1, repeats: 3 })));
  return rows;
}

export function report(rows) {
  return `8 sequences of 256 tokens, median of 3 steps after a warm-up; the peak is that of the process over its steps.

${planTable(rows)}`;
}
