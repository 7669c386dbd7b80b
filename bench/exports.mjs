// Exports of a job at real size: memory and time of the process that writes and checks them, and their difference from the run's weights.
//
//     node bench/exports.mjs [--cells FILE] [--report FILE] [--folder FOLDER] [--layouts PEFT:BFLOAT16,…] [preset …]
//
// Each layout is exported twice, without and with the check, so that the time of the check is known. Each row is stored in FILE once it is
// measured: an interrupted run trains again and continues with the next row.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ExportFormat, ReloraClient, WeightType, parseJobSpec } from '@relora/sdk';
import { countParameters, presets } from '../engine/dist/plan/index.js';
import { Cells } from './cells.mjs';
import { startServer } from './service/server.mjs';
import { availableBytes } from './sides/processMemory.mjs';
import { childPeak, trainerPeak } from './sides/trainerPeak.mjs';
import { table } from './table.mjs';

const license = readFileSync(new URL('../LICENSE', import.meta.url));
const allLayouts =
  'HUGGING_FACE:FLOAT32,HUGGING_FACE:FLOAT16,HUGGING_FACE:BFLOAT16,PEFT:FLOAT32,PEFT:BFLOAT16,GGUF:BFLOAT16,GGUF:Q8_0';
/** Disk space as a multiple of the weights: a checkpoint, its base next to the run, an artifact or an export. */
const diskTimes = 3.2;

/** Two short steps, so that adapters are not zero. */
function specOf(preset, dataset) {
  return parseJobSpec({
    kind: 'JOB_KIND_RELORA',
    model: { config: { ...presets[preset], vocabSize: 32_000 } },
    dataset,
    warmStart: { stepCount: 0 },
    adapter: { rank: 128, cycleStepCount: 2 },
    learningRate: { peak: 0.01, warmupStepCount: 1 },
    stepCount: 2,
    batch: { sequenceLength: 128, sequenceCount: 1 },
    precision: 'PRECISION_INT8_BASE',
    checkpoint: { everyStepCount: 100, keepCount: 2 },
    evaluation: { tokenCount: 256, finalTokenCount: 256 },
    export: { formats: ['EXPORT_FORMAT_HUGGING_FACE'], weightType: 'WEIGHT_TYPE_BFLOAT16' },
  });
}

/** Whether a layout is compared with the run, by the suffix of its row's key. */
const ways = { written: 0, compared: 512 };

/** Measures the missing rows of a model. */
async function measure(preset, parent) {
  const layouts = values.layouts.split(',');
  const keys = Object.keys(ways).flatMap((way) => layouts.map((layout) => keyOf(preset, layout, way)));
  if (!cells.has(preset) || keys.some((key) => !cells.has(key))) await fill(preset, layouts, parent);
  return {
    preset,
    trainer: await cells.row(preset),
    rows: await Promise.all(layouts.map((layout) => layoutRow(preset, layout))),
  };
}

const keyOf = (preset, layout, way) => `${preset} ${layout} ${way}`;

async function layoutRow(preset, layout) {
  const [format, weightType] = layout.split(':');
  const written = await cells.row(keyOf(preset, layout, 'written'));
  const compared = await cells.row(keyOf(preset, layout, 'compared'));
  return { format, weightType, written, compared };
}

async function fill(preset, layouts, parent) {
  const weightBytes =
    4 * countParameters({ model: { ...presets[preset], vocabSize: 32_000 }, adapter: null }).model;
  const { bavail, bsize } = statfsSync(parent);
  if (bavail * bsize < diskTimes * weightBytes)
    throw new Error(`${preset} needs ${giga(diskTimes * weightBytes)} GB of disk`);
  const dataFolder = mkdtempSync(join(parent, 'relora-exports-'));
  let server = await startServer(dataFolder);
  try {
    let client = new ReloraClient({ address: server.grpcAddress });
    const { name: dataset } = await client.uploadDataset({
      files: [{ content: license, fileName: 'license.txt' }],
    });
    const spec = specOf(preset, dataset);
    const { estimate } = await client.estimateJob(spec);
    if (availableBytes() < 1.1 * estimate.peakMemoryBytes)
      throw new Error(`${preset} needs ${giga(estimate.peakMemoryBytes)} GB of memory that is free`);
    const { job, peakBytes } = await trainerPeak(client, server.pid, spec);
    const [{ difference }] = await client.listArtifacts(job.name);
    await cells.row(preset, () => ({
      weightBytes,
      estimateBytes: estimate.peakMemoryBytes,
      peakBytes,
      difference,
      instructionSet: job.execution.instructionSet,
      load: loadavg()[0],
    }));
    for (const [way, tokens] of Object.entries(ways)) {
      client.close();
      await server.stop();
      server = await startServer(dataFolder, { RELORA_EXPORT_CHECK_TOKENS: String(tokens) });
      client = new ReloraClient({ address: server.grpcAddress });
      for (const layout of layouts)
        await cells.row(keyOf(preset, layout, way), () => exportRow(client, server.pid, job.name, layout));
    }
    client.close();
  } finally {
    await server.stop();
    rmSync(dataFolder, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Makes one export and deletes it; returns its costs and differences. */
async function exportRow(client, serverPid, job, layout) {
  const [format, weightType] = layout.split(':');
  const beganMs = performance.now();
  const { result, peakBytes } = await childPeak(serverPid, async () => {
    const { name } = await client.exportWeights(job, {
      format: ExportFormat[format],
      weightType: WeightType[weightType],
    });
    return await client.waitForArtifact(name);
  });
  const seconds = (performance.now() - beganMs) / 1000;
  await client.deleteArtifact(result.name);
  console.error(`${layout}: ${seconds.toFixed(0)} s`);
  return {
    seconds,
    peakBytes,
    sizeBytes: result.sizeBytes,
    difference: result.difference,
    load: loadavg()[0],
  };
}

const giga = (bytes) => (bytes / 1e9).toFixed(2);
const mega = (bytes) => Math.round(bytes / 1e6);
const figure = (value) => String(Number(value.toPrecision(3)));
const words = { HUGGING_FACE: 'Hugging Face', PEFT: 'PEFT', GGUF: 'GGUF' };

function section({ preset, trainer, rows }) {
  const loads = rows.flatMap(({ written, compared }) => [written.load, compared.load]);
  return `## ${preset}

Weights of ${giga(trainer.weightBytes)} GB in float32. The trainer exported bfloat16 at its end and compared it (ratio ${figure(trainer.difference.logitDifferenceRatio)}): it held ${mega(trainer.peakBytes)} MB at most, estimated
${mega(trainer.estimateBytes)}. Load averages while exports were written: ${Math.min(...loads).toFixed(1)} to ${Math.max(...loads).toFixed(1)}.

${table(
  [
    'layout',
    'type',
    'MB',
    'written, s',
    'written and compared, s',
    'peak MB, written',
    'peak MB, compared',
    'difference / spread',
    'bound',
    'loss',
    'of the export',
  ],
  rows.map(({ format, weightType, written, compared }) => [
    words[format],
    weightType.toLowerCase(),
    mega(written.sizeBytes),
    written.seconds.toFixed(0),
    compared.seconds.toFixed(0),
    mega(written.peakBytes),
    mega(compared.peakBytes),
    figure(compared.difference.logitDifferenceRatio),
    compared.difference.logitDifferenceRatioMax,
    compared.difference.loss.toFixed(5),
    compared.difference.exportedLoss.toFixed(5),
  ]),
)}
`;
}

function report(models) {
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  return `# Exports at size, written and compared

${cpus()[0].model.split(' ').slice(0, 2).join(' ')}, ${models[0].trainer.instructionSet}, ${cpus().length} processors, commit ${commit}, Node ${process.versions.node}. \`node bench/exports.mjs\` makes it: random weights, rank 128, two steps, so that
adapters are not zero; then each export by a process of its own, once without the comparison and once with its 512 tokens.

${models.map(section).join('\n')}`;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    cells: { type: 'string' },
    report: { type: 'string' },
    layouts: { type: 'string', default: allLayouts },
    folder: { type: 'string', default: tmpdir() },
  },
});
const cells = new Cells(values.cells ?? join(tmpdir(), 'relora-exports.jsonl'));
const models = [];
for (const preset of positionals.length > 0 ? positionals : ['llama-350m', 'llama-1b'])
  models.push(await measure(preset, values.folder));
const text = report(models);
if (values.report !== undefined) writeFileSync(values.report, text);
console.log(text);
