// Peak memory of trainers over two restarts, each on a separate server, compared with the server's estimate.
//
//     node bench/peakMemory.mjs [--cells FILE] [--report FILE] [preset:precision[:warm] …]
//
// Precisions are those of a job's specification. Rows are stored in FILE, so that an interrupted run continues.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ReloraClient, parseJobSpec } from '@relora/sdk';
import { presets } from '../engine/dist/plan/index.js';
import { Cells } from './cells.mjs';
import { availableBytes } from './sides/processMemory.mjs';
import { trainerPeak } from './sides/trainerPeak.mjs';
import { table } from './table.mjs';

const precisions = ['FLOAT32', 'BFLOAT16', 'INT8_BASE', 'NF4_BASE'];
const sidesDefault = [
  ...['llama-9m', 'llama-20m', 'llama-60m', 'llama-130m', 'llama-350m'].flatMap((preset) =>
    precisions.map((precision) => `${preset}:${precision}`),
  ),
  'llama-1b:INT8_BASE',
];
const license = readFileSync(new URL('../LICENSE', import.meta.url));
const main = fileURLToPath(new URL('../server/dist/main.js', import.meta.url));

/**
 * Cycles of one step: by the third step everything that a restart allocates and keeps exists. The vocabulary has 32,000 tokens although the
 * text consists of bytes.
 */
function specOf(side, dataset) {
  const [preset, precision, warmStart] = side.split(':');
  return parseJobSpec({
    kind: 'JOB_KIND_RELORA',
    model: { config: { ...presets[preset], vocabSize: 32_000 } },
    dataset,
    warmStart: { stepCount: warmStart === 'warm' ? 1 : 0 },
    adapter: { rank: 128, cycleStepCount: 1 },
    stepCount: warmStart === 'warm' ? 4 : 3,
    batch: { sequenceLength: 256, sequenceCount: 8 },
    precision: `PRECISION_${precision}`,
    evaluation: { tokenCount: 256, finalTokenCount: 256 },
  });
}

async function measure(side) {
  const dataFolder = mkdtempSync(join(tmpdir(), 'relora-peak-'));
  const server = spawn(process.execPath, [main], {
    env: {
      PATH: process.env.PATH,
      RELORA_DATA_FOLDER: dataFolder,
      RELORA_GRPC_ADDRESS: '127.0.0.1:0',
      RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(server, 'exit');
  try {
    const client = new ReloraClient({ address: await addressOf(server) });
    const { name: dataset } = await client.uploadDataset({
      files: [{ content: license, fileName: 'license.txt' }],
    });
    const spec = specOf(side, dataset);
    const { estimate } = await client.estimateJob(spec);
    const estimateBytes = estimate.peakMemoryBytes;
    if (availableBytes() < 1.1 * estimateBytes)
      throw new Error(`${side} needs ${mega(estimateBytes)} MB of memory that is free`);
    const { job, peakBytes } = await trainerPeak(client, server.pid, spec);
    client.close();
    return { side, estimateBytes, peakBytes, instructionSet: job.execution.instructionSet };
  } finally {
    server.kill('SIGKILL');
    await exited;
    rmSync(dataFolder, { recursive: true, force: true, maxRetries: 5 });
  }
}

async function addressOf(server) {
  for await (const line of createInterface({ input: server.stdout })) {
    const { grpcAddress } = JSON.parse(line);
    if (grpcAddress !== undefined) {
      server.stdout.resume();
      return grpcAddress;
    }
  }
  throw new Error('The server has ended');
}

const mega = (bytes) => Math.round(bytes / 1e6);

function report(rows) {
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  return `# Peak memory of a trainer over two restarts

${cpus()[0].model.split(' ').slice(0, 2).join(' ')}, ${rows[0].instructionSet}, commit ${commit}, Node ${process.versions.node}. Rank 128, 8 sequences of 256 tokens, vocabulary 32000, cycles of one
step; jobs of a server with its defaults, and the most that their trainers held, in MB. \`node bench/peakMemory.mjs\` makes it.

${table(
  ['model', 'precision', 'estimate', 'peak', 'estimate / peak'],
  rows.map(({ side, estimateBytes, peakBytes }) => {
    const [preset, precision, warm] = side.split(':');
    return [
      preset,
      precision + (warm ? ', full-rank warm start' : ''),
      mega(estimateBytes),
      mega(peakBytes),
      (estimateBytes / peakBytes).toFixed(3),
    ];
  }),
)}
`;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { cells: { type: 'string' }, report: { type: 'string' } },
});
const cells = new Cells(values.cells ?? join(tmpdir(), 'relora-peak-memory.jsonl'));
const rows = [];
for (const side of positionals.length > 0 ? positionals : sidesDefault)
  rows.push(await cells.row(side, () => measure(side)));
const text = report(rows);
if (values.report !== undefined) writeFileSync(values.report, text);
console.log(text);
