// Peak memory of whole runs over two restarts, each in a process of its own, beside what the plan foresees.
//
//     node bench/peakMemory.mjs [--cells FILE] [--report FILE] [preset:precision …]
//
// Rows are kept in FILE, so that a run that was cut short continues where it was.
import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { beginRun, disposeRun, openDevice, trainLoop } from '../engine/dist/index.js';
import { Dataset, prepareDataset } from '../engine/dist/data/index.js';
import { defaultRunSpec, presets } from '../engine/dist/plan/index.js';
import { unmeasured } from '../engine/dist/plan/deviceSpeed.js';
import { memoryPhases, peakMemory, totalOf } from '../engine/dist/plan/memoryModel.js';
import { Cells } from './cells.mjs';
import { availableBytes, peakResidentBytes } from './sides/processMemory.mjs';
import { table } from './table.mjs';

const sidesDefault = ['llama-250m:int8Base', 'llama-350m:int8Base', 'llama-1b:int8Base'];
const license = fileURLToPath(new URL('../LICENSE', import.meta.url));

/** A cycle of one step: what a restart adds and keeps is there by the third. Wide as a model of 32,000 tokens, on a text of bytes. */
function specOf(side) {
  const [preset, precision, warmStart = ''] = side.split(':');
  return defaultRunSpec({
    kind: 'relora',
    model: { ...presets[preset], vocabSize: 32_000 },
    dataset: 'datasets/license',
    warmStart: { stepCount: warmStart === 'warm' ? 1 : 0 },
    adapter: { rank: 128, cycleStepCount: 1 },
    stepCount: 3,
    batch: { sequenceLength: 256, sequenceCount: 8 },
    precision,
    evaluation: { everyStepCount: 0, tokenCount: 256, finalTokenCount: 256 },
    checkpoint: { everyStepCount: 0 },
    device: 'native',
  });
}

/** In the child: the run up to its last step, and what it held at most. */
async function measure(side) {
  const spec = specOf(side);
  const folder = mkdtempSync(join(tmpdir(), 'relora-peak-'));
  try {
    const outputFolder = join(folder, 'dataset');
    await prepareDataset(
      {
        files: [{ path: license, name: 'LICENSE', format: 'text', split: 'auto' }],
        outputFolder,
        heldOutShare: 0.1,
        textField: 'text',
        tokenizer: { kind: 'bytes' },
        seed: 0,
      },
      () => {},
      new AbortController().signal,
    );
    const dataset = await Dataset.open(outputFolder, { verify: false });
    const device = await openDevice({ device: 'native', precision: spec.precision });
    // Not measured, as in a trainer: what measuring leaves in the process would count.
    const speed = unmeasured(device.description);
    const run = await beginRun({ spec, device, dataset, runFolder: join(folder, 'run'), attempt: 1 });
    const peaks = [];
    const seconds = [];
    for await (const event of trainLoop(run, new AbortController().signal)) {
      if (event.kind === 'step' || event.kind === 'restart') {
        peaks.push({ kind: event.kind, bytes: peakResidentBytes() });
        seconds.push(event.stepSeconds ?? event.seconds);
      }
      if (event.kind === 'step' && event.step === run.schedule.stepCount - 1) break;
    }
    disposeRun(run);
    await dataset.close();
    return {
      side,
      estimateBytes: totalOf(peakMemory(spec, speed)),
      phases: memoryPhases(spec, speed).map((parts) => ({ total: totalOf(parts), ...parts })),
      peaks,
      seconds,
      instructionSet: device.description.instructionSet,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function inChild(side) {
  const needed = 1.1 * totalOf(peakMemory(specOf(side), unknownSpeed));
  if (availableBytes() < needed) throw new Error(`${side} needs ${mega(needed)} MB of memory that is free`);
  const child = fork(fileURLToPath(import.meta.url), ['--child', side], { serialization: 'advanced' });
  const exited = once(child, 'exit');
  const row = await Promise.race([
    once(child, 'message').then(([message]) => message),
    exited.then(([code, signal]) => Promise.reject(new Error(`${side} ended with ${code ?? signal}`))),
  ]);
  await exited;
  return row;
}

const unknownSpeed = {
  backend: 'native',
  instructionSet: 'avx512',
  threadCount: 2,
  autoPrecision: 'bfloat16',
  float32Flops: 0,
  bfloat16Flops: 0,
  int8Flops: 0,
  memoryBytesPerSecond: 0,
};
const mega = (bytes) => Math.round(bytes / 1e6);

/** By the plan as it is now, also of rows that were measured before it changed. */
function estimateOf({ side, instructionSet }) {
  return totalOf(peakMemory(specOf(side), { ...unknownSpeed, instructionSet }));
}

function report(rows) {
  const last = ({ peaks }) => peaks.at(-1).bytes;
  const toFirst = ({ peaks }) => peaks[peaks.findIndex(({ kind }) => kind === 'restart')].bytes;
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  return `# Peak memory over two restarts

${cpus()[0].model.split(' ').slice(0, 2).join(' ')}, ${rows[0].instructionSet}, commit ${commit}, Node ${process.versions.node}. Rank 128, 8 sequences of 256 tokens, vocabulary 32000, cycles of one
step; the peak is that of the process up to the last step, in MB. \`node bench/peakMemory.mjs\` makes it.

${table(
  [
    'model',
    'precision',
    'estimate',
    'peak to the first step',
    'to the first restart',
    'to the end',
    'estimate / peak',
  ],
  rows.map((row) => {
    const [preset, precision, warm] = row.side.split(':');
    return [
      preset,
      precision + (warm ? ', full-rank warm start' : ''),
      mega(estimateOf(row)),
      mega(row.peaks[0].bytes),
      mega(toFirst(row)),
      mega(last(row)),
      (estimateOf(row) / last(row)).toFixed(3),
    ];
  }),
)}
`;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { child: { type: 'string' }, cells: { type: 'string' }, report: { type: 'string' } },
});
if (values.child !== undefined) {
  process.send(await measure(values.child));
  process.disconnect();
} else {
  const cells = new Cells(values.cells ?? join(tmpdir(), 'relora-peak-memory.jsonl'));
  const rows = [];
  for (const side of positionals.length > 0 ? positionals : sidesDefault)
    rows.push(await cells.row(side, () => inChild(side)));
  const text = report(rows);
  if (values.report !== undefined) writeFileSync(values.report, text);
  console.log(text);
}
