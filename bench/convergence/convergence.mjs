// npm run bench:convergence: ReLoRA and its baselines on the same tokens of real text, written to bench/results/ with a plot.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { linePanel } from '../plots/lines.mjs';
import { figure } from '../plots/svg.mjs';
import { compare } from './compare.mjs';
import { modes, plan } from './modes.mjs';
import { plots, report } from './report.mjs';
import { Runs } from './runs.mjs';

const usage = `npm run bench:convergence -- [options]

  --seeds N           seeds 1 … N (default 3)
  --only NAME[,…]     these modes alone; fullRank is always there
  --parallel N        runs at a time, each on one thread (default: all CPUs of this process)

Finished runs are kept in .relora/convergence/ and not repeated. Modes:

${modes.map(({ name, label }) => `  ${name.padEnd(20)} ${label}`).join('\n')}`;

const options = readOptions();
const resultsFolder = fileURLToPath(new URL('../results/', import.meta.url));
const startedAt = Date.now();
const runs = await Runs.open({
  parallelCount: options.parallelCount,
  say: (line) => console.error(`${line} (${((Date.now() - startedAt) / 60_000).toFixed(1)} min)`),
});
const { cpuModel, instructionSet, trainTokenCount } = runs;
let compared;
try {
  compared = await compare(plan, options.modes, options.seeds, runs);
} finally {
  await runs.close();
}

const machine = {
  cpuModel,
  instructionSet,
  commit: execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim(),
  trainTokenCount,
};
const cpu = cpuModel.replace(/[^A-Za-z0-9]+/g, '-').toLowerCase();
const name = [new Date().toISOString().slice(0, 10), cpu, instructionSet, 'convergence'].join('-');
const title = 'ReLoRA against its baselines';
const text = report(plan, options.seeds, compared, machine);
mkdirSync(resultsFolder, { recursive: true });
writeFileSync(join(resultsFolder, `${name}.svg`), figure(title, plots(compared).map(linePanel)));
writeFileSync(
  join(resultsFolder, `${name}.md`),
  `# ${title}\n\n![Held-out loss by tokens](${name}.svg)\n\n${text}`,
);
console.log(`${text}\nWritten to bench/results/${name}.md`);

function readOptions() {
  const { values } = parseArgs({
    options: {
      seeds: { type: 'string', default: '3' },
      only: { type: 'string' },
      parallel: { type: 'string', default: String(availableParallelism()) },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    console.log(usage);
    process.exit(0);
  }
  const names = values.only?.split(',') ?? modes.map(({ name }) => name);
  const unknown = names.filter((name) => !modes.some((mode) => mode.name === name));
  if (unknown.length > 0) fail(`--only: expected some of ${modes.map(({ name }) => name)}, got ${unknown}`);
  return {
    seeds: Array.from({ length: wholeNumber('--seeds', values.seeds) }, (_, index) => index + 1),
    modes: modes.filter(({ name, kind }) => kind === 'fullRank' || names.includes(name)),
    parallelCount: wholeNumber('--parallel', values.parallel),
  };
}

function wholeNumber(option, text) {
  const number = Number(text);
  if (!Number.isInteger(number) || number < 1) fail(`${option}: expected a whole number from 1, got ${text}`);
  return number;
}

function fail(message) {
  console.error(message);
  process.exit(2);
}
