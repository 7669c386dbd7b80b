import { measureGroup, planTable, stepTable } from './group.mjs';
import { kindOf, modeOf, nameOf } from './sides/sides.mjs';
import { megabytes } from './table.mjs';

export const name = 'steps';
export const title = 'Whole steps of presets up to llama-60m, PyTorch beside llama-60m';
export const isFull = false;

const ours = (preset, rank, precision) => ({ engine: 'relora', preset, rank, precision });
const pytorch = (preset, rank) => ({ engine: 'pytorch', preset, rank });

/** The sides of each list are alternated; ranks are an eighth of the width, with more ranks at llama-60m. */
const groups = [
  [ours('demo', 0), ours('demo', 24)],
  [ours('llama-9m', 0), ours('llama-9m', 16)],
  [ours('llama-20m', 0), ours('llama-20m', 32)],
  [
    ours('llama-60m', 0),
    ours('llama-60m', 64),
    ours('llama-60m', 128),
    ours('llama-60m', 256),
    ours('llama-60m', 64, 'int8Base'),
    ours('llama-60m', 128, 'nf4Base'),
    { ...ours('llama-60m', 128), headPrecision: 'int8' },
    { ...ours('llama-60m', 64, 'int8Base'), headPrecision: 'int8' },
    pytorch('llama-60m', 0),
    pytorch('llama-60m', 128),
  ],
];

export async function run(session) {
  const rows = [];
  for (const sides of groups) rows.push(...(await measureGroup(session, sides)));
  return rows;
}

export function report(rows) {
  return `A step is forward, backward, clipping and AdamW of 8 sequences of 256 tokens: best and median of 7 after 3 warm-ups, all sides of
a preset in turn, each in a process of its own that is stopped while another runs. Operations are those of docs/relora.md, so what is
recomputed does not count. Memory is the peak resident size of the process after its steps, a merge not counted.

${stepTable(rows)}

What \`relora estimate\` would have said:

${planTable(rows)}`;
}

export function plots(rows) {
  const drawn = rows.filter(({ failure, preset }) => failure === null && preset === 'llama-60m');
  if (drawn.length === 0) return [];
  const bars = (value, shown) =>
    drawn.map((row) => ({
      label: `${kindOf(row)}, ${nameOf(row)}, ${modeOf(row)}`,
      value: value(row),
      shown: shown(value(row)),
      tone: row.engine === 'relora' ? 0 : 1,
    }));
  return [
    {
      title: 'llama-60m: tokens a second',
      bars: bars(
        ({ tokensPerSecond }) => tokensPerSecond,
        (value) => value.toFixed(0),
      ),
    },
    {
      title: 'llama-60m: peak resident memory',
      bars: bars(
        ({ peakBytes }) => peakBytes,
        (value) => `${megabytes(value)} MB`,
      ),
    },
  ];
}
