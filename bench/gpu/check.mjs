// Checks on a card what the tests check on its software model: calls against their definitions, whole runs, bits, memory. Plain Node.js
// without a test runner; `node bench/gpu/check.mjs --help` lists the sections. Exits with status 1 on any fault.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readOptions, usage } from './options.mjs';
import { Report } from './report.mjs';
import { runSections } from './sections.mjs';
import * as conformance from './checks/conformance.mjs';
import * as golden from './checks/golden.mjs';
import * as kernels from './checks/kernels.mjs';
import * as memory from './checks/memory.mjs';
import * as products from './checks/products.mjs';
import * as repeated from './checks/repeated.mjs';
import * as sanitizer from './checks/sanitizer.mjs';
import * as service from './checks/service.mjs';
import * as wide from './checks/wide.mjs';

const sections = [kernels, conformance, products, wide, golden, repeated, service, memory, sanitizer];
const options = readOptions(process.argv.slice(2), sections, { report: 'gpu-check.md', seconds: 110 });
if (options.isHelp) {
  console.log(usage('node bench/gpu/check.mjs', sections));
  process.exit(0);
}

const report = new Report(options.report, 'Check of a card', [
  `${new Date().toISOString()}, Node.js ${process.version}${options.isModel ? ', on the model of a card' : ''}`,
]);
const folder = mkdtempSync(join(tmpdir(), 'relora-gpu-'));
process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
await runSections(report, options, () => ({ folder }));
