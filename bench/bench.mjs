// npm run bench: products and whole steps on this machine, as shares of its measured peak, written to bench/results/.
import { mkdirSync, writeFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import { loadNativeAddon } from '../engine/dist/index.js';
import { benchProducts } from './products.mjs';
import { benchSteps, stepCells, stepHeader } from './steps.mjs';

const addon = loadNativeAddon();
const { instructionSets, cpuModel, threadsMax } = addon.describe();
console.log(`${cpuModel}, ${threadsMax} threads, ${instructionSets.join(', ')}\n`);

const stepRows = [];
console.log(stepHeader.join('  '));
await benchSteps({
  onRow(row) {
    stepRows.push(row);
    console.log(stepCells(row).join('  '));
  },
});

console.log();
const productHeader = [
  'instructions',
  'precision',
  'product',
  'shape',
  'GFLOP/s, median',
  'best',
  'measured peak',
  'share of peak',
];
const productCells = (row) => [
  row.instructionSet,
  row.precision,
  row.product,
  row.shape,
  ...[row.gflopsMedian, row.gflopsBest, row.peak].map((value) => value.toFixed(0)),
  `${(100 * row.share).toFixed(0)} %`,
];
console.log(productHeader.join('  '));
const productRows = benchProducts({
  addon,
  milliseconds: 150,
  onRow: (row) => console.log(productCells(row).join('  ')),
});

const folder = fileURLToPath(new URL('results/', import.meta.url));
mkdirSync(folder, { recursive: true });
const name = `${new Date().toISOString().slice(0, 10)}-${cpuModel.replace(/[^A-Za-z0-9]+/g, '-').toLowerCase()}-${instructionSets[0]}.md`;
writeFileSync(join(folder, name), report());
console.log(`\nWritten to bench/results/${name}`);

function report() {
  const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim();
  return `# ${cpuModel}, ${threadsMax} threads, ${instructionSets[0]}

Commit ${commit}, Node ${process.versions.node}. A share is the median divided by the peak that a loop of multiply-adds in
registers reached on the same threads in the same run. A step is forward, backward, clipping and AdamW; its operations are
those of docs/relora.md, so what is recomputed does not count.

## Whole steps

${markdown(stepHeader, stepRows.map(stepCells))}

## Products

${markdown(productHeader, productRows.map(productCells))}
`;
}

function markdown(header, rows) {
  return [header, header.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}
