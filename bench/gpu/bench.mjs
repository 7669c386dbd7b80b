// Measures a card: whole steps alternating with PyTorch's, individual kernels, memory, restarts. Plain Node.js; `node bench/gpu/bench.mjs
// --help` lists the sections. Results go to the report at once, so an interrupted run loses nothing.
import { performance } from 'node:perf_hooks';
import { cardOptions, openCard } from './card.mjs';
import { readOptions, usage } from './options.mjs';
import { findPeer } from './peers.mjs';
import { Report } from './report.mjs';
import { openText } from './text.mjs';
import * as fp8 from './measures/fp8.mjs';
import * as kernels from './measures/kernels.mjs';
import * as memory from './measures/memory.mjs';
import * as merges from './measures/merges.mjs';
import * as replays from './measures/replays.mjs';
import * as small from './measures/small.mjs';
import * as adapters from './measures/adapters.mjs';
import * as fullRank from './measures/fullRank.mjs';
import * as steps from './measures/steps.mjs';

const sections = [steps, fp8, replays, merges, memory, kernels, fullRank, small, adapters];
const options = readOptions(process.argv.slice(2), sections, { report: 'gpu-bench.md', seconds: 225 });
if (options.isHelp) {
  console.log(usage('node bench/gpu/bench.mjs', sections));
  process.exit(0);
}

const begin = performance.now();
const open = (precision) => openCard(cardOptions(options), precision);
const peer = options.isModel ? { command: null, reason: 'no card' } : await findPeer(options.python);
const text = openText(options.isModel ? 257 : 32_000);
const device = open('bfloat16');
const { model, instructionSet, libraries } = device.description;
device.close();
const report = new Report(options.report, 'Speed of a card', [
  `${new Date().toISOString()}, ${model}, ${instructionSet}, ${Object.entries(libraries).flat().join(' ')},`,
  `Node.js ${process.version}, ${peer.command === null ? peer.reason : `PyTorch ${peer.version}`}, ${text.name}.`,
  'ReLoRA: rank 128, all graphs merged; k tokens/s from the median of steps; ratios are to PyTorch in the same minute.',
]);
const context = {
  ...options,
  ...{ open, peer, text },
  /** Tokens/s measured so far, for later sections. */
  found: new Map(),
  secondsLeft: () => options.seconds - (performance.now() - begin) / 1e3,
};
for (const section of options.sections) {
  try {
    for await (const row of section.run(context)) report.add(section.name, row);
  } catch (error) {
    report.add(section.name, {
      what: section.title,
      outcome: 'FAULT',
      figures: error.stack ?? String(error),
    });
  }
}
report.end();
process.exit(report.counts.FAULT === 0 ? 0 : 1);
