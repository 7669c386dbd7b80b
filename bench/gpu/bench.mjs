// Measures a card: whole steps alternating with PyTorch's, restarts, memory, individual kernels. Plain Node.js; `node bench/gpu/bench.mjs
// --help` lists the sections. Results go to the report at once, so an interrupted run loses nothing.
import { readOptions, usage } from './options.mjs';
import { PeerProcess } from './peers.mjs';
import { Report } from './report.mjs';
import { runSections } from './sections.mjs';
import { targetRows } from './targets.mjs';
import { openText } from './text.mjs';
import * as compiling from './measures/compiling.mjs';
import * as fp8 from './measures/fp8.mjs';
import * as fullRank from './measures/fullRank.mjs';
import * as memory from './measures/memory.mjs';
import * as merges from './measures/merges.mjs';
import * as products from './measures/products.mjs';
import * as replays from './measures/replays.mjs';
import * as small from './measures/small.mjs';
import * as steps from './measures/steps.mjs';
import * as variants from './measures/variants.mjs';

// What shows whether a target is reached comes first; then what takes seconds; then what takes as long as there is time.
const sections = [compiling, steps, fullRank, fp8, merges, memory, replays, small, products, variants];
const options = readOptions(process.argv.slice(2), sections, { report: 'gpu-bench.md', seconds: 225 });
if (options.isHelp) {
  console.log(usage('node bench/gpu/bench.mjs', sections));
  process.exit(0);
}

const text = openText(options.isModel ? 257 : 32_000);
const report = new Report(options.report, 'Speed of a card', [
  `${new Date().toISOString()}, Node.js ${process.version}, ${text.name}${options.isModel ? ', on the model of a card' : ''}.`,
  'ReLoRA: rank 128, all graphs merged; k tokens/s from the median of steps; ratios are to PyTorch in the same minute.',
]);
await runSections(
  report,
  options,
  async () => {
    const peer = await PeerProcess.find(options);
    report.add('card', peer.describe());
    // `found`: results for later sections and for the targets, by name.
    return { text, peer, found: new Map() };
  },
  ({ found = new Map() }) => targetRows(found),
);
