// How long another client waits beside the worst request of each method: `npm run bench:service`. Each of them is sent again and
// again on four connections while GetJob is called every five milliseconds on a fifth; the goal is a p99 below 100 ms.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import {
  CompareJobsRequest,
  DatasetServiceDefinition,
  EstimateJobRequest,
  GenerateTextRequest,
  GetJobRequest,
  JobSpec,
  ListDatasetsRequest,
  ListJobsRequest,
  TrainingServiceDefinition,
  UploadDatasetRequest,
} from '@relora/sdk/contract';
import { Client, credentials, Metadata } from '@grpc/grpc-js';
import { createChannel, createClient } from 'nice-grpc';
import { table } from './table.mjs';

const secondsEach = Number(process.env.BENCH_SECONDS ?? 3);
const senders = 4;
const pingMs = 5;

const folder = mkdtempSync(join(tmpdir(), 'relora-bench-service-'));
const server = spawn(process.execPath, [fileURLToPath(new URL('../server/dist/main.js', import.meta.url))], {
  env: {
    PATH: process.env.PATH,
    RELORA_DATA_FOLDER: folder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
  },
  stdio: ['ignore', 'pipe', 'inherit'],
});
try {
  const address = await new Promise((resolve) => {
    createInterface({ input: server.stdout }).on('line', (line) => {
      const { grpcAddress } = JSON.parse(line);
      if (grpcAddress !== undefined) resolve(grpcAddress);
    });
  });
  const jobName = await fill(address);
  const rows = [];
  for (const [label, path, request] of worstRequests(jobName))
    rows.push([label, ...(await measure(address, path, request, jobName))]);
  console.log(`${cpus()[0].model}, ${availableParallelism()} processors, Node ${process.version}\n`);
  console.log(
    table(['worst request', 'answer', 'its own ms', 'p50 beside it', 'p99 beside it', 'longest'], rows),
  );
} finally {
  server.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
}

/** A data set, jobs with long prompts that were cancelled, and data sets of a thousand files that nobody sent. */
async function fill(address) {
  const channel = createChannel(address);
  const training = createClient(TrainingServiceDefinition, channel);
  const datasets = createClient(DatasetServiceDefinition, channel);
  const text = Buffer.from('Once upon a time there was an adapter of rank four. '.repeat(2000));
  const sha256 = createHash('sha256').update(text).digest('hex');
  await datasets.uploadDataset(
    (async function* () {
      yield { header: { datasetId: 'text', files: [{ fileName: 'a.txt', sizeBytes: text.length, sha256 }] } };
      yield { chunk: { fileIndex: 0, offsetBytes: 0, data: text } };
    })(),
  );
  while ((await datasets.getDataset({ name: 'datasets/text' })).dataset.state !== 'DATASET_STATE_READY')
    await new Promise((resolve) => setTimeout(resolve, 100));
  for (let count = 0; count < 20; count++) {
    const files = Array.from({ length: 1000 }, (_, index) => ({
      fileName: `${String(index).padStart(100, 'x')}.txt`,
      sizeBytes: 1,
      sha256,
    }));
    await datasets
      .uploadDataset(
        (async function* () {
          yield { header: { datasetId: `many-${count}`, files } };
        })(),
      )
      .catch(() => {});
  }
  let name = '';
  for (let count = 0; count < 60; count++) {
    const { job } = await training.createJob({ spec: spec({ sample: { prompt: 'x'.repeat(4000) } }) });
    name = job.name;
    await training.cancelJob({ name });
  }
  channel.close();
  return name;
}

function spec(changes) {
  return JobSpec.fromPartial({
    model: { preset: 'demo' },
    dataset: 'datasets/text',
    stepCount: 20,
    warmStart: { stepCount: 0 },
    adapter: { rank: 4, cycleStepCount: 5 },
    batch: { sequenceLength: 32, sequenceCount: 2 },
    ...changes,
  });
}

function worstRequests(jobName) {
  const training = '/relora.v1.TrainingService';
  const encode = (type, value) => Buffer.from(type.encode(type.fromPartial(value)).finish());
  const names = Array.from({ length: 90_000 }, (_, index) => `jobs/job-${index}`);
  const plan = (adapter) =>
    encode(EstimateJobRequest, {
      spec: spec({ stepCount: 499_998, adapter: { rank: 4, restartWarmupStepCount: 0, ...adapter } }),
    });
  const files = Array.from({ length: 9000 }, (_, index) => ({
    fileName: `../${index}`,
    sizeBytes: -1,
    sha256: 'no',
  }));
  return [
    ['(nothing)', null, null],
    ['CompareJobs of 90,000 names', `${training}/CompareJobs`, encode(CompareJobsRequest, { names })],
    ['EstimateJob, 250,000 cycles', `${training}/EstimateJob`, plan({ cycleStepCount: 2 })],
    [
      'EstimateJob, cycles that grow',
      `${training}/EstimateJob`,
      plan({ cycleStepCount: 2, cycleGrowth: 1.00001, allowShortLastCycle: true }),
    ],
    ['ListJobs of 60 long prompts', `${training}/ListJobs`, encode(ListJobsRequest, { pageSize: 500 })],
    [
      'ListJobs of 90,000 states',
      `${training}/ListJobs`,
      encode(ListJobsRequest, { states: Array(90_000).fill('JOB_STATE_QUEUED') }),
    ],
    [
      'ListDatasets, 20 of 1,000 files',
      '/relora.v1.DatasetService/ListDatasets',
      encode(ListDatasetsRequest, {}),
    ],
    [
      'UploadDataset of 9,000 wrong files',
      '/relora.v1.DatasetService/UploadDataset',
      encode(UploadDatasetRequest, { header: { files } }),
    ],
    [
      'GenerateText, prompt of 1 MiB',
      '/relora.v1.ModelService/GenerateText',
      encode(GenerateTextRequest, { model: jobName, prompt: 'x'.repeat(1 << 20) }),
    ],
    ['GetJob of 2 million fields', `${training}/GetJob`, Buffer.alloc(4 << 20, Buffer.from([0x78, 0x00]))],
    ['GetJob of 4 MiB of name', `${training}/GetJob`, encode(GetJobRequest, { name: 'x'.repeat(4_000_000) })],
  ];
}

/** Its answer, its own median time, and the times of GetJob beside it. */
async function measure(address, path, request, jobName) {
  const pass = (bytes) => bytes;
  const open = () =>
    new Client(address, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 });
  const call = (client, method, bytes) =>
    new Promise((resolve) => {
      const stream = client.makeBidiStreamRequest(method, pass, pass, new Metadata(), {
        deadline: Date.now() + 60_000,
      });
      stream.on('data', () => {});
      stream.on('end', () => resolve('OK'));
      stream.on('error', (error) => resolve(`${error.code}`));
      stream.write(bytes);
      stream.end();
    });
  const endsAt = performance.now() + 1000 * secondsEach;
  const own = [];
  let answer = '';
  const heavy = Array.from({ length: path === null ? 0 : senders }, async () => {
    const client = open();
    while (performance.now() < endsAt) {
      const began = performance.now();
      answer = await call(client, path, request);
      own.push(performance.now() - began);
    }
    client.close();
  });
  const client = open();
  const ping = Buffer.from(GetJobRequest.encode({ name: jobName }).finish());
  const beside = [];
  while (performance.now() < endsAt) {
    const began = performance.now();
    await call(client, '/relora.v1.TrainingService/GetJob', ping);
    beside.push(performance.now() - began);
    await new Promise((resolve) => setTimeout(resolve, pingMs));
  }
  await Promise.all(heavy);
  client.close();
  const at = (times, share) => [...times].sort((a, b) => a - b)[Math.floor(share * (times.length - 1))];
  const ms = (value) => (value === undefined ? '–' : value.toFixed(1));
  return [answer || '–', ms(at(own, 0.5)), ms(at(beside, 0.5)), ms(at(beside, 0.99)), ms(at(beside, 1))];
}
