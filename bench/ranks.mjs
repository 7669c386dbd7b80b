// Costs of several processes per job on this machine: processor seconds of a step, bytes, the time of a sum, and whether all have the same
// bits. All runs use the same batches. With fewer processors than processes wall time is meaningless, so processor time counts. The time of
// an exchange is that of the process that arrives last and therefore waits for nobody, from the end of its backward pass on; its median over
// the steps is compared with that of a step.
//
//     node bench/ranks.mjs [--preset llama-9m] [--steps 20] [--sizes 1,2,4] [--reduction float32] [--mpi 'mpirun …'] [--overlap on|off]
//       [--micro 1] [--report FILE]
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultRunSpec, exchangedBytes, presets } from '../engine/dist/plan/index.js';
import { prepareDataset } from '../engine/dist/data/index.js';
import { runRanks } from './ranks.run.mjs';
import { percent, table } from './table.mjs';

const { values } = parseArgs({
  options: {
    preset: { type: 'string', default: 'llama-9m' },
    steps: { type: 'string', default: '20' },
    sizes: { type: 'string', default: '1,2,4' },
    reduction: { type: 'string', default: 'float32' },
    mpi: { type: 'string' },
    overlap: { type: 'string' },
    micro: { type: 'string', default: '1' },
    report: { type: 'string' },
  },
});
const steps = Number(values.steps);
// By default, as a trainer does it.
const overlap = values.overlap === undefined ? undefined : values.overlap === 'on';
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
    batch: { sequenceLength: 256, sequenceCount: 8, microBatchSequenceCount: Number(values.micro) },
    precision: 'float32',
    reductionType: values.reduction,
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
      const ranks = await runRanks(spec, size, datasetFolder, folder, { mpirun: values.mpi, overlap });
      const losses = ranks[0].losses;
      if (!bits.has(kind)) bits.set(kind, losses);
      const alone = bits.get(kind);
      results.push({
        kind,
        size,
        cpuSeconds: ranks.reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0) / steps,
        sumSeconds: ranks[0].sumCpuSeconds / steps,
        exchangeSeconds: medianOf(lastToCome(ranks)),
        stepSeconds: medianOf(ranks[0].stepTimes),
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

/** For each exchange, the time of the process that waited least. */
function lastToCome(ranks) {
  return ranks[0].sumTimes.map((_, index) => Math.min(...ranks.map(({ sumTimes }) => sumTimes[index])));
}

function medianOf(times) {
  return times.toSorted((one, other) => one - other)[Math.floor(times.length / 2)];
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
    size === 1
      ? '–'
      : `${(of.exchangeSeconds * 1000).toFixed(1)} of ${(of.stepSeconds * 1000).toFixed(0)} (${percent(of.exchangeSeconds / of.stepSeconds, 1)})`,
    size === 1 ? '–' : of.isEqual ? 'yes' : 'NO',
    of.difference.toExponential(1),
  ];
});
const made = process.argv.slice(2).map((word) => (word.includes(' ') ? `'${word}'` : word));
const report = `# Several processes for one job

${values.preset}, vocabulary 8,192, 8 sequences of 256 tokens a step in micro-batches of ${values.micro}, ${steps} steps, adapters of rank 32, float32, gradients in ${values.reduction} by ${values.mpi ?? 'shared memory'}. ${cpus()[0].model}, ${availableParallelism()} processors, load ${loadavg()[0].toFixed(0)}
while it ran. Made by \`node bench/ranks.mjs ${made.join(' ')}\`.

${table(
  [
    'job',
    'processes',
    'processor s a step, all',
    'rate per processor s',
    'MB summed a step',
    'by the formula',
    'processor ms of the sums, each',
    'ms of an exchange, of a step',
    'same bits in all',
    'largest difference of a loss to one',
  ],
  rows,
)}
`;
console.log(report);
if (values.report) writeFileSync(values.report, report);
