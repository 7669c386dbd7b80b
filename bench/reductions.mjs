// Effect on the loss of how a job's processes exchange what they learn: the same tokens of real text, one thread per process.
//
//     node bench/reductions.mjs [--preset demo] [--steps 400] [--size 4] [--seeds 3] [--report FILE]
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadNativeAddon } from '../engine/dist/index.js';
import { defaultRunSpec, presets } from '../engine/dist/plan/index.js';
import { runRanks } from './ranks.run.mjs';
import { table } from './table.mjs';
import { preparedText } from './text.mjs';

const { values } = parseArgs({
  options: {
    preset: { type: 'string', default: 'demo' },
    steps: { type: 'string', default: '400' },
    size: { type: 'string', default: '4' },
    seeds: { type: 'string', default: '3' },
    report: { type: 'string' },
  },
});
const [stepCount, size, seedCount] = [values.steps, values.size, values.seeds].map(Number);
const warmSteps = Math.round(stepCount / 5);
const rank = 24;

/** The first is the reference; a single process shows the effect of only changing the order of sums. */
const ways = {
  float32: { size, settings: { reductionType: 'float32' } },
  'one process': { size: 1, settings: {} },
  bfloat16: { size, settings: { reductionType: 'bfloat16' } },
  'float32, once a cycle': { size, settings: { replicas: size, synchronization: 'everyCycle' } },
};

const specOf = (settings, seed) =>
  defaultRunSpec({
    kind: 'relora',
    model: { ...presets[values.preset], vocabSize: 257 },
    dataset: 'datasets/text',
    warmStart: { stepCount: warmSteps, learningRate: 3e-3, optimizer: 'muon' },
    adapter: { rank, alpha: rank, cycleStepCount: Math.round((stepCount - warmSteps) / 4) },
    stepCount: stepCount - warmSteps,
    learningRate: { peak: 3e-3 },
    batch: { sequenceLength: 256, sequenceCount: 4, microBatchSequenceCount: 1 },
    precision: 'float32',
    seed,
    evaluation: { everyStepCount: 0, everySeconds: 0, finalTokenCount: 65_536 },
    checkpoint: { everyStepCount: 1_000_000, everySeconds: 0 },
    documentWindowStepCount: 0,
    device: 'native',
    ...settings,
  });

const datasetFolder = await preparedText({ kind: 'bytes' });
const folder = mkdtempSync(join(tmpdir(), 'relora-bench-reductions-'));
const results = [];
const load = loadavg()[0];
try {
  for (let seed = 1; seed <= seedCount; seed++)
    for (const [name, way] of Object.entries(ways)) {
      const ranks = await runRanks(specOf(way.settings, seed), way.size, datasetFolder, folder);
      if (ranks.some(({ weightsSha256 }) => weightsSha256 !== ranks[0].weightsSha256))
        throw new Error(`${name}, seed ${seed}: the processes do not hold the same weights`);
      results.push({ name, seed, ...ranks[0] });
      console.error(`  ${name}, seed ${seed}: held-out loss ${ranks[0].heldOutLoss.toFixed(4)}`);
    }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
const rows = Object.keys(ways).map((name) => {
  const of = results.filter((result) => result.name === name);
  const differences = of.map(({ seed, heldOutLoss }) => heldOutLoss - referenceOf(seed).heldOutLoss);
  return [
    name,
    ...of.map(({ heldOutLoss }) => heldOutLoss.toFixed(4)),
    mean(of.map(({ heldOutLoss }) => heldOutLoss)).toFixed(4),
    of[0] === results[0]
      ? '–'
      : `${mean(differences).toFixed(4)} (${differences.map((value) => value.toFixed(4)).join(', ')})`,
    (of[0].summedBytes / stepCount / 1e6).toFixed(2),
  ];
});
const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
const report = `# How processes exchange what they learn, and the loss

${values.preset}, ${stepCount} steps of 1,024 bytes of the demo's text, ${warmSteps} of them a warm start by Muon, then ReLoRA of rank ${rank} in four cycles at a rate of 0.003; float32,
${size} processes of one thread that share memory. ${cpus()[0].model.split(' ').slice(0, 2).join(' ')} (${loadNativeAddon().describe().instructionSets[0]}), ${availableParallelism()} processors, load ${load.toFixed(0)} at the start, commit ${commit}. Held-out loss in nats a
byte at the end, by seed. Made by \`node bench/reductions.mjs --preset ${values.preset} --steps ${stepCount} --size ${size} --seeds ${seedCount}\`.

${table(
  [
    'exchanged in',
    ...Array.from({ length: seedCount }, (_, index) => `seed ${index + 1}`),
    'mean',
    'difference to the first row, by seed',
    'MB summed a step',
  ],
  rows,
)}
`;
console.log(report);
if (values.report) writeFileSync(values.report, report);

function referenceOf(seed) {
  return results.find((result) => result.seed === seed);
}
