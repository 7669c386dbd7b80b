// npm run bench: measures our engine and PyTorch on this machine, and writes the results with a plot to bench/results/.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import { loadNativeAddon } from '../engine/dist/index.js';
import { rowOf, withRow } from './kinds.mjs';
import { readOptions, usage } from './options.mjs';
import { barPanel } from './plots/bars.mjs';
import { linePanel } from './plots/lines.mjs';
import { figure } from './plots/svg.mjs';
import { sections } from './sections.mjs';
import { findPytorch, Session } from './session.mjs';
import { targetTable } from './targets.mjs';

const folder = fileURLToPath(new URL('results/', import.meta.url));
const addon = loadNativeAddon();

let options;
try {
  options = readOptions(process.argv.slice(2), sections, addon.describe());
} catch (error) {
  console.error(error.message);
  process.exit(2);
}
if (options.help) {
  console.log(usage(sections));
  process.exit(0);
}

const { instructionSet, threads } = options;
const say = (line) => console.error(line);
const session = new Session({ addon, instructionSet, threads, pytorch: await findPytorch(), say });

// The other sections are compared with the machine's peaks, so these are measured in every run.
const chosen = sections.filter((section) => section.name === 'machine' || options.sections.includes(section));
const chapters = [];
for (const section of chosen) {
  say(`${section.title} …`);
  const result = await section.run(session);
  session.results[section.name] = result;
  const chapter = `## ${section.title}\n\n${section.report(result)}\n`;
  chapters.push(chapter);
  console.log(chapter);
}

const { cpuModel } = session.results.machine;
const heading = `${cpuModel}, ${threads} threads, ${instructionSet}`;
const targets = `## Targets\n\n${targetTable(session.results)}\n`;
console.log(targets);

const panels = chosen
  .flatMap((section) => section.plots?.(session.results[section.name]) ?? [])
  .map((plot) => (plot.bars === undefined ? linePanel(plot) : barPanel(plot)));
mkdirSync(folder, { recursive: true });
const name = nameOfRun();
const picture = panels.length === 0 ? '' : `![What the tables say](${name}.svg)\n\n`;
if (panels.length > 0) writeFileSync(join(folder, `${name}.svg`), figure(heading, panels));
writeFileSync(join(folder, `${name}.md`), `# ${heading}\n\n${picture}${[targets, ...chapters].join('\n')}`);
console.log(`Written to bench/results/${name}.md`);
if (options.isReported) {
  const page = fileURLToPath(new URL('../docs/performance.md', import.meta.url));
  writeFileSync(page, withRow(readFileSync(page, 'utf8'), rowOf(session.results, name)));
  console.log('Its row is in docs/performance.md');
}

/** A run of only some sections gets a file of its own, so that it does not replace a complete one. */
function nameOfRun() {
  const date = new Date().toISOString().slice(0, 10);
  const cpu = cpuModel.replace(/[^A-Za-z0-9]+/g, '-').toLowerCase();
  const parts = options.isPartial ? options.sections.map((section) => section.name) : [];
  return [date, cpu, instructionSet, ...parts].join('-');
}
