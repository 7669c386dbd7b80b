// What several processes of one job cost on this machine: processor seconds of a step, bytes, the time of a sum, and whether all have the
// same bits. Every run takes the same batches. With fewer processors than processes wall time says nothing, so that time is that of
// the processors.
//
//     node bench/ranks.mjs [--preset llama-9m] [--steps 20] [--sizes 1,2,4] [--report FILE]
import { spawn } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { defaultRunSpec, exchangedBytes, presets, sharedMemoryBytes } from '../engine/dist/plan/index.js';
import { prepareDataset } from '../engine/dist/data/index.js';
import { table } from './table.mjs';

const { values } = parseArgs({
  options: {
    preset: { type: 'string', default: 'llama-9m' },
    steps: { type: 'string', default: '20' },
    sizes: { type: 'string', default: '1,2,4' },
    report: { type: 'string' },
  },
});
const steps = Number(values.steps);
const sizes = values.sizes.split(',').map(Number);
const folder = mkdtempSync(join(tmpdir(), 'relora-bench-ranks-'));

const kinds = {
  ReLoRA: { kind: 'relora', adapter: { rank: 32, cycleStepCount: Math.max(2, Math.floor(steps / 2)) } },
  'full rank': { kind: 'fullRank', adapter: null },
};

const specOf = (kind) =>
  defaultRunSpec({
    ...kinds[kind],
    model: { ...presets[values.preset], vocabSize: 8192 },
    dataset: 'datasets/text',
    warmStart: { stepCount: 0 },
    stepCount: steps,
    batch: { sequenceLength: 256, sequenceCount: 8, microBatchSequenceCount: 1 },
    precision: 'float32',
    device: 'native',
    seed: 1,
    evaluation: { everyStepCount: 0, everySeconds: 0, finalTokenCount: 256 },
    checkpoint: { everyStepCount: 1_000_000, everySeconds: 0 },
    documentWindowStepCount: 0,
  });

const results = [];
try {
  const text = join(folder, 'text.txt');
  const words = Array.from({ length: 60_000 }, (_, index) => ((index * 7919) % 4096).toString(36));
  writeFileSync(text, words.join(' '));
  const datasetFolder = join(folder, 'data');
  await prepareDataset(
    {
      files: [{ path: text, name: 'text.txt', format: 'text', split: 'auto' }],
      outputFolder: datasetFolder,
      tokenizer: { kind: 'bytes' },
      textField: 'text',
      heldOutShare: 0.1,
      seed: 0,
    },
    () => {},
    new AbortController().signal,
  );
  const bits = new Map();
  for (const kind of Object.keys(kinds)) {
    const spec = specOf(kind);
    for (const size of sizes) {
      const ranks = await runRanks(spec, size, datasetFolder);
      const losses = ranks[0].losses;
      if (!bits.has(kind)) bits.set(kind, losses);
      const alone = bits.get(kind);
      results.push({
        kind,
        size,
        cpuSeconds: ranks.reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0) / steps,
        sumSeconds: ranks[0].sumCpuSeconds / steps,
        bytes: ranks[0].summedBytes / steps,
        planned: size === 1 ? 0 : exchangedBytes(spec, kind === 'full rank' ? 'fullRank' : 'adapter'),
        isEqual: ranks.every(({ weightsSha256 }) => weightsSha256 === ranks[0].weightsSha256),
        difference: Math.max(...losses.map((loss, step) => Math.abs(loss - alone[step]))),
      });
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(2);
const rows = results.map(({ kind, size, ...of }) => {
  const alone = results.find((one) => one.kind === kind && one.size === sizes[0]);
  return [
    kind,
    size,
    of.cpuSeconds.toFixed(3),
    (alone.cpuSeconds / of.cpuSeconds).toFixed(2),
    megabytes(of.bytes),
    megabytes(of.planned),
    size === 1 ? '–' : (of.sumSeconds * 1000).toFixed(1),
    size === 1 ? '–' : of.isEqual ? 'yes' : 'NO',
    of.difference.toExponential(1),
  ];
});
const report = `# Several processes for one job

${values.preset}, vocabulary 8,192, 8 sequences of 256 tokens a step in micro-batches of one, ${steps} steps, adapters of rank 32, float32. ${cpus()[0].model}, ${availableParallelism()} processors, load ${loadavg()[0].toFixed(0)}
while it ran. Made by \`node bench/ranks.mjs --preset ${values.preset} --steps ${steps}\`.

${table(
  [
    'job',
    'processes',
    'processor s a step, all',
    'rate per processor s',
    'MB summed a step',
    'by the formula',
    'processor ms of the sums, each',
    'same bits in all',
    'largest difference of a loss to one',
  ],
  rows,
)}
`;
console.log(report);
if (values.report) writeFileSync(values.report, report);

async function runRanks(spec, size, datasetFolder) {
  const program = fileURLToPath(new URL('./ranks.rank.mjs', import.meta.url));
  const path = join(folder, 'shared');
  const file = openSync(path, 'wx+');
  unlinkSync(path);
  writeSync(file, new Uint8Array(sharedMemoryBytes(size)), 0, sharedMemoryBytes(size), 0);
  const children = Array.from({ length: size }, (_, rank) => {
    const runFolder = join(folder, `${spec.kind}-${size}-${rank}`);
    mkdirSync(runFolder);
    const order = JSON.stringify({ rank, size, spec, datasetFolder, runFolder });
    return spawn(process.execPath, [program, order], { stdio: ['ignore', 'pipe', 'inherit', file] });
  });
  closeSync(file);
  return await Promise.all(
    children.map(async (child) => {
      let output = '';
      child.stdout.setEncoding('utf8').on('data', (more) => (output += more));
      await new Promise((resolve) => child.once('close', resolve));
      return JSON.parse(output);
    }),
  );
}
