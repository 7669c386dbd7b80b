// The table of docs/performance.md with a row per kind of processor: what a run measured there, and which run it was.
import { judged } from './targets.mjs';
import { none, percent, table } from './table.mjs';

/** Sections that a row is made of. */
export const sectionsOfRow = ['machine', 'modes', 'steps', 'head', 'products', 'exactness'];

const [begin, end] = ['<!-- kinds of processors: npm run bench -- --report -->', '<!-- end of kinds -->'];
const header = [
  'processor',
  'instructions',
  'bfloat16 units',
  'peaks, GFLOP/s: float32, bfloat16, int8',
  "ReLoRA r=128 to PyTorch's",
  "int8 r=64 to PyTorch's full rank",
  "head to PyTorch's",
  'layers, float32',
  'attention 256, forward, backward',
  'estimate of time, worst',
  'matrix units to their model',
  'run',
];

/** Cells of a row. `run`: the name of its file in bench/results. */
export function rowOf(results, run) {
  const { cpuModel, instructionSet, threads, peaks } = results.machine;
  const ratio = (what) => judged(results).find((target) => target.what === what)?.measured ?? none;
  return [
    `${cpuModel}, ${threads} threads`,
    instructionSet,
    unitsOf(instructionSet),
    Object.values(peaks)
      .map((peak) => (peak === null ? none : peak.toFixed(0)))
      .join(', '),
    ratio("60M ReLoRA r=128, not quantized, to PyTorch's ReLoRA"),
    ratio('60M ReLoRA r=64, int8 base, to PyTorch full-rank'),
    ratio('head and cross-entropy to PyTorch'),
    ratio('float32 products of a layer to the measured peak, by operations'),
    attentionShares(results.products),
    ratio('estimate of time, furthest from measurement'),
    matrixUnits(results.exactness),
    `[run](../bench/results/${run}.md)`,
  ];
}

function unitsOf(instructionSet) {
  if (/amx/i.test(instructionSet)) return 'tiles';
  return /bf16/i.test(instructionSet) ? 'yes' : 'none used';
}

function attentionShares(products) {
  const shares = (products ?? [])
    .filter(
      ({ kind, precision, shape }) =>
        kind === 'attention' && precision === 'float32' && /^\d+x256x/.test(shape),
    )
    .map(({ share }) => percent(share));
  return shares.length === 0 ? none : shares.join(', ');
}

function matrixUnits(sets) {
  const there = (sets ?? []).filter(({ failure }) => failure === null);
  if (there.length === 0) return 'not there';
  return there
    .map(({ set, rows }) => {
      const isEqual = rows.every(({ differing }) => differing.length === 0);
      return `${set} ${isEqual ? 'equal' : 'DIFFERENT'}, ${rows.map(({ precision, share }) => `${precision} ${percent(share)}`).join(', ')}`;
    })
    .join('; ');
}

/** Inserts the row in the page's table: in place of an older one of the same processor and instructions, else at the end. */
export function withRow(page, row) {
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`The page has no table between "${begin}" and "${end}"`);
  const rows = page
    .slice(from + begin.length, to)
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .slice(2)
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
  const same = rows.findIndex((other) => other[0] === row[0] && other[1] === row[1]);
  if (same < 0) rows.push(row);
  else rows[same] = row;
  return `${page.slice(0, from)}${begin}\n\n${table(header, rows)}\n\n${page.slice(to)}`;
}
