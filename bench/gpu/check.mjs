// Checks on a card what the tests check on its software model: calls against their definitions, whole runs, bits, memory. Plain Node.js
// without a test runner; `node bench/gpu/check.mjs --help` lists the sections. Exits with status 1 on any fault.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { cardOptions, openCard } from './card.mjs';
import { readOptions, usage } from './options.mjs';
import { Report } from './report.mjs';
import * as card from './checks/card.mjs';
import * as conformance from './checks/conformance.mjs';
import * as golden from './checks/golden.mjs';
import * as memory from './checks/memory.mjs';
import * as products from './checks/products.mjs';
import * as repeated from './checks/repeated.mjs';
import * as sanitizer from './checks/sanitizer.mjs';
import * as service from './checks/service.mjs';
import * as wide from './checks/wide.mjs';

const sections = [card, conformance, products, wide, golden, memory, service, repeated, sanitizer];
const options = readOptions(process.argv.slice(2), sections, { report: 'gpu-check.md', seconds: 110 });
if (options.isHelp) {
  console.log(usage('node bench/gpu/check.mjs', sections));
  process.exit(0);
}

const report = new Report(options.report, 'Check of a card', [
  `${new Date().toISOString()}, Node.js ${process.version}${options.isModel ? ', on the model of a card' : ''}`,
]);
const folder = mkdtempSync(join(tmpdir(), 'relora-gpu-'));
const begin = performance.now();
const context = {
  ...options,
  folder,
  open: (precision) => openCard(cardOptions(options), precision),
  secondsLeft: () => options.seconds - (performance.now() - begin) / 1e3,
};
for (const section of options.sections) {
  try {
    if (context.secondsLeft() <= 0) {
      report.add(section.name, { what: section.title, outcome: 'not run', figures: 'the time is over' });
      continue;
    }
    for await (const row of section.run(context)) report.add(section.name, row);
  } catch (error) {
    // An error that aborts a section becomes a row of the report, and later sections still run.
    report.add(section.name, {
      what: section.title,
      outcome: 'FAULT',
      figures: error.stack ?? String(error),
    });
  }
}
rmSync(folder, { recursive: true, force: true });
report.end();
process.exit(report.counts.FAULT === 0 ? 0 : 1);
