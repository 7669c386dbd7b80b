import { alternate } from './sides/alternate.mjs';
import { modeOf, nameOf, oursModes, pytorchModes } from './sides/sides.mjs';
import { megabytes, milliseconds, notAvailable, table } from './table.mjs';

export const name = 'head';
export const title = 'The loss over the vocabulary with both gradients, alone';
export const isFull = false;

const shape = { rows: 2048, dim: 512, vocabulary: 32_000 };

export async function run(session) {
  const open = [];
  const rows = [];
  const sides = [
    ...oursModes.map((mode) => ({ engine: 'relora', ...mode })),
    ...(session.pytorch.command === null ? [] : pytorchModes.map((mode) => ({ engine: 'pytorch', ...mode }))),
  ];
  for (const side of sides) {
    try {
      open.push({ side, child: await session.openHead({ ...shape, ...side }) });
    } catch (error) {
      rows.push({ ...side, failure: error.message });
    }
  }
  const runs = await alternate(open.map(({ child }) => child));
  for (const [index, { side, child }] of open.entries()) {
    await child.close();
    rows.push({ ...side, failure: null, ...runs[index] });
  }
  return rows;
}

export function report(rows) {
  const { rows: tokens, dim, vocabulary } = shape;
  const cells = rows
    .filter(({ failure }) => failure === null)
    .map(({ secondsBest, secondsMedian, last, ...side }) => [
      nameOf(side),
      modeOf(side),
      milliseconds(secondsBest),
      milliseconds(secondsMedian),
      megabytes(last.peakBytes),
      last.scratchBytes === undefined ? '' : megabytes(last.scratchBytes),
    ]);
  const missing = rows.map((row) => ({ ...row, label: `${nameOf(row)}, ${modeOf(row)}` }));
  return `${tokens} tokens of width ${dim} over ${vocabulary} words, forward and backward; PyTorch computes F.linear and F.cross_entropy. Best and median
of 7 after 3 warm-ups in turn. Scratch is what a pass adds to the resident size, outputs not counted.

${table(['side', 'mode', 'ms, best', 'median', 'peak MB', 'scratch MB'], cells)}${notAvailable(missing)}`;
}
