// Time of each slice of CI compared with its budget: 45 minutes in total on two idle processors. Exceeding a budget is not an error, since
// another machine may be slower or busy; the lines show where time goes, and which slice has outgrown its budget.
// node scripts/printSlices.mjs REPORT name=seconds ... : the seconds of vitest's JSON report by folder, and those of other slices.
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const budgets = {
  'install and build': 300,
  lint: 180,
  contract: 60,
  'test/engine': 700,
  'test/arm': 180,
  'test/cuda': 300,
  'test/server': 650,
  'test/sdk': 150,
  'test/cli': 150,
  'test/e2e': 450,
  // The short form of the fault scenarios, which must not take longer.
  'test/faults': 180,
  'test/golden': 90,
  'test/pages': 550,
  'test/release': 180,
  'test/page': 200,
  postgres: 180,
  'other tests': 150,
};

const [report, ...others] = process.argv.slice(2);
const seconds = new Map(
  others.map((slice) => slice.split('=')).map(([name, value]) => [name, Number(value)]),
);
for (const { name, startTime, endTime } of JSON.parse(readFileSync(report, 'utf8')).testResults) {
  const [folder, inside] = relative(root, name).split('/').slice(0, 2);
  const slice = `${folder}/${inside}` in budgets ? `${folder}/${inside}` : 'other tests';
  seconds.set(slice, (seconds.get(slice) ?? 0) + (endTime - startTime) / 1000);
}
console.log('slice                seconds  budget');
for (const [name, budget] of Object.entries(budgets)) {
  const taken = seconds.get(name);
  if (taken === undefined) continue;
  const over = taken > budget ? '  over its budget' : '';
  console.log(`${name.padEnd(20)} ${taken.toFixed(0).padStart(7)} ${String(budget).padStart(7)}${over}`);
}
