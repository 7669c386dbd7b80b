// The worst request for each method, for `npm run bench:service` and the test of the longest blocking of the event loop.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
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
import { createChannel, createClient } from 'nice-grpc';
import { readDescriptors } from '../server/dist/grpc/descriptors.js';

/** Two data sets, one of them short, canceled jobs with long prompts, and data sets of a thousand files that were never sent. */
export async function fillServer(address) {
  const channel = createChannel(address);
  const training = createClient(TrainingServiceDefinition, channel);
  const datasets = createClient(DatasetServiceDefinition, channel);
  const digest = (data) => createHash('sha256').update(data).digest('hex');
  for (const [datasetId, lineCount] of [
    ['text', 2000],
    ['short', 1],
  ]) {
    const data = Buffer.from('Once upon a time there was an adapter of rank four. '.repeat(lineCount));
    const file = { fileName: 'a.txt', sizeBytes: data.length, sha256: digest(data) };
    await datasets.uploadDataset(
      (async function* () {
        yield { header: { datasetId, files: [file] } };
        yield { chunk: { fileIndex: 0, offsetBytes: 0, data } };
      })(),
    );
    while (
      (await datasets.getDataset({ name: `datasets/${datasetId}` })).dataset.state !== 'DATASET_STATE_READY'
    )
      await new Promise((resolve) => setTimeout(resolve, 100));
  }
  for (let count = 0; count < 20; count++) {
    const files = Array.from({ length: 1000 }, (_, index) => ({
      fileName: `${String(index).padStart(100, 'x')}.txt`,
      sizeBytes: 1,
      sha256: digest('x'),
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

/** @type {(jobName: string) => [label: string, path: string, request: Buffer][]} */
export const worstRequests = (jobName) => {
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
    ['CompareJobs of 90,000 names', `${training}/CompareJobs`, encode(CompareJobsRequest, { names })],
    ['EstimateJob, 250,000 cycles', `${training}/EstimateJob`, plan({ cycleStepCount: 2 })],
    [
      'EstimateJob, cycles that grow',
      `${training}/EstimateJob`,
      plan({ cycleStepCount: 2, cycleGrowth: 1.00001, allowShortLastCycle: true }),
    ],
    [
      'EstimateJob that stops at the end of data shorter than a sequence',
      `${training}/EstimateJob`,
      encode(EstimateJobRequest, {
        spec: spec({
          dataset: 'datasets/short',
          endOfData: 'END_OF_DATA_STOP',
          stepCount: 500_000,
          batch: { sequenceLength: 64, sequenceCount: 2 },
        }),
      }),
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
    [
      'GenerateText, prompt of 4 MB',
      '/relora.v1.ModelService/GenerateText',
      encode(GenerateTextRequest, { model: jobName, prompt: '\u{1f600}'.repeat(1_000_000) }),
    ],
    [
      'UploadDataset with a tokenizer of 3 MB',
      '/relora.v1.DatasetService/UploadDataset',
      encode(UploadDatasetRequest, {
        header: { tokenizer: { huggingFace: { tokenizerJson: `[${'"a",'.repeat(780_000)}0]` } } },
      }),
    ],
    ['GetJob of 2 million fields', `${training}/GetJob`, Buffer.alloc(4 << 20, Buffer.from([0x78, 0x00]))],
    ['GetJob of 4 MiB of name', `${training}/GetJob`, encode(GetJobRequest, { name: 'x'.repeat(4_000_000) })],
  ];
};

/** For every method a message of maximum size: with a text of four megabytes, and with a list, each in the first field that allows it. */
export function* longRequests() {
  const { messages, requests } = readDescriptors(
    readFileSync(new URL('../server/src/generated/relora.binpb', import.meta.url)),
  );
  const varint = (value) =>
    value < 128
      ? Buffer.from([value])
      : Buffer.concat([Buffer.from([(value % 128) + 128]), varint(value >> 7)]);
  const bytesOf = (number, content) =>
    Buffer.concat([varint(number * 8 + 2), varint(content.length), content]);
  const [string, message] = [9, 11];
  /** The path to the first matching field of a message or of a nested one. */
  const find = (type, isWanted, depth = 0) => {
    const fields = [...(messages.get(type) ?? [])];
    for (const [number, field] of fields) if (isWanted(field)) return { way: [number], field };
    for (const [number, field] of depth > 3 ? [] : fields) {
      const found = field.type === message ? find(field.typeName, isWanted, depth + 1) : undefined;
      if (found !== undefined) return { ...found, way: [number, ...found.way] };
    }
    return undefined;
  };
  const inside = (way, content) => way.reduceRight((bytes, number) => bytesOf(number, bytes), content);
  for (const [path, type] of requests) {
    const text = find(type, (field) => field.type === string && !field.isRepeated);
    if (text !== undefined) yield [path, inside(text.way, Buffer.alloc(4_000_000, 'x'))];
    const list = find(type, (field) => field.isRepeated && [string, message].includes(field.type));
    if (list === undefined) continue;
    const entry = bytesOf(list.way.at(-1), Buffer.from(list.field.type === string ? 'jobs/job' : ''));
    yield [path, inside(list.way.slice(0, -1), Buffer.alloc(9_900 * entry.length, entry))];
  }
}
