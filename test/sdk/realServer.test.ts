import { spawnSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { JobState, parseJobSpec, type JobEvent, type ReloraError } from '@relora/sdk';
import { expect, test } from 'vitest';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from './realServer.js';

const upload = {
  datasetId: 'tiny-text',
  files: [{ content: tinyText(), fileName: 'tiny.txt' }],
  spec: { heldOutShare: 0.1 },
};
const sha256 = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');

test('a job from the text to the words, over the SDK', async () => {
  const { client } = await realServer();
  const dataset = await client.uploadDataset(upload);
  expect(dataset.train!.tokenCount).toBeGreaterThan(1000);
  expect(
    (await client.previewDataset(dataset.name, { tokenCount: 4 })).map(({ text }) => text).join(''),
  ).toBe('Line');

  const spec = parseJobSpec(tinySpec(20));
  const before = (await client.estimateJob(spec)).estimate!;
  const job = await client.createJob(spec, { displayName: 'tiny', labels: { team: 'test' } });
  const seen: JobEvent[] = [];
  const done = await client.waitForJob(job.name, { onEvent: (event) => seen.push(event) });
  expect(done).toMatchObject({ state: JobState.SUCCEEDED, displayName: 'tiny', lastSequence: seen.length });
  expect(seen.map(({ sequence }) => sequence)).toEqual(seen.map((_, index) => index + 1));
  expect(new Set(seen.map(({ kind }) => kind))).toEqual(
    new Set([
      ...['state', 'warning', 'step', 'documents', 'evaluation', 'plan', 'restart', 'checkpoint', 'artifact'],
    ]),
  );
  // The next job's estimate uses the measured time of the steps.
  const after = (await client.estimateJob(spec)).estimate!;
  expect(after.durationSeconds).toBeGreaterThan(0);
  expect(after.durationSeconds).not.toBe(before.durationSeconds);
  expect(after.measuredLoadRatio).toBe(0);
  expect([before.durationLowSeconds, before.durationHighSeconds]).toEqual([0, 0]);
  expect(after.durationLowSeconds).toBeLessThanOrEqual(after.durationSeconds);
  expect(after.durationHighSeconds).toBeGreaterThanOrEqual(after.durationSeconds);
  // There is nothing left to watch, and waiting again returns at once.
  for await (const event of client.watch(job.name, { afterSequence: done.lastSequence }))
    expect(event).toBeUndefined();
  expect(await client.waitForJob(job.name)).toEqual(done);

  const folder = temporaryFolder();
  const paths = await client.downloadArtifact(job.name, folder);
  const [artifact] = await client.listArtifacts(job.name);
  expect(paths.map((path) => basename(path))).toEqual(artifact!.files.map(({ fileName }) => fileName));
  expect(paths.map(sha256)).toEqual(artifact!.files.map((file) => file.sha256));

  // A partial download that is correct so far is continued; one with wrong bytes is discarded.
  const weights = artifact!.files.find(({ fileName }) => fileName === 'model.safetensors')!;
  const broken = temporaryFolder();
  const part = join(broken, `${weights.fileName}.${weights.sha256.slice(0, 12)}.part`);
  writeFileSync(part, readFileSync(join(folder, weights.fileName)));
  truncateSync(part, 1000);
  const received: number[] = [];
  const onProgress = ({ fileName, receivedBytes }: { fileName: string; receivedBytes: number }) => {
    if (fileName === weights.fileName) received.push(receivedBytes);
  };
  await client.downloadArtifact(artifact!.name, broken, { onProgress });
  expect(sha256(join(broken, weights.fileName))).toBe(weights.sha256);
  expect(received[0]).toBeGreaterThan(1000);
  const spoilt = temporaryFolder();
  writeFileSync(join(spoilt, basename(part)), Buffer.alloc(1000, 7));
  // The existing part is wrong, as the hash shows; the file is fetched again.
  await client.downloadArtifact(artifact!.name, spoilt);
  expect(sha256(join(spoilt, weights.fileName))).toBe(weights.sha256);
  expect(readdirSync(spoilt).filter((name) => name.endsWith('.part'))).toEqual([]);

  const pieces = [];
  for await (const piece of client.generate(job.name, { prompt: 'Line ', tokenCountMax: 8, seed: 1 }))
    pieces.push(piece);
  expect(pieces.at(-1)!.finishReason).not.toBe('FINISH_REASON_UNSPECIFIED');
  expect((await client.serverInfo()).devices.length).toBeGreaterThan(0);
});

test('requests that are wrong or repeated', async () => {
  const { client } = await realServer();
  const dataset = await client.uploadDataset(upload);
  // Repeating the upload finds the existing data set.
  expect((await client.uploadDataset(upload)).manifestSha256).toBe(dataset.manifestSha256);

  const wrong = { ...tinySpec(25), seed: -1, batch: { sequence_count: 0 } };
  const error: ReloraError = await client.validateJob(parseJobSpec(wrong)).then(
    () => Promise.reject(new Error('It was taken')),
    (error: unknown) => error as ReloraError,
  );
  expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', reason: 'JOB_SPEC_INVALID' });
  const fields = error.fields.map(({ field }) => field);
  expect(fields.sort()).toEqual(['spec.adapter.cycle_step_count', 'spec.batch.sequence_count', 'spec.seed']);

  const spec = parseJobSpec(tinySpec(20));
  const requestId = '7f1c0a52-5b0f-4d5f-9d0a-2f7a5f0e1c11';
  const first = await client.createJob(spec, { requestId });
  expect((await client.createJob(spec, { requestId })).name).toBe(first.name);
  await expect(client.createJob({ ...spec, seed: 8 }, { requestId })).rejects.toMatchObject({
    reason: 'REQUEST_ID_REUSED',
  });
  expect((await client.estimateJob(spec)).plan!.restartSteps).toEqual([20]);

  await client.cancelJob(first.name);
  await expect(client.waitForJob(first.name)).rejects.toMatchObject({ name: 'JobFailedError' });
  await expect(client.downloadArtifact(first.name, temporaryFolder())).rejects.toMatchObject({
    code: 'NOT_FOUND',
  });
  const names = [];
  for await (const { name } of client.listJobs({ pageSize: 1 })) names.push(name);
  expect(names).toEqual([first.name]);
});

test('the example does what it says', async () => {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const folder = temporaryFolder();
  const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');
  const flags =
    '--module nodenext --target es2022 --strict --skipLibCheck --types node --rootDir examples'.split(' ');
  const compiled = spawnSync(
    process.execPath,
    [tsc, 'examples/launchAndFetch.ts', ...flags, '--outDir', folder],
    { cwd: root },
  );
  expect(compiled.stdout.toString()).toBe('');

  const { address } = await realServer();
  writeFileSync(join(folder, 'text.txt'), tinyText());
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
  const child = spawn(process.execPath, ['launchAndFetch.js', 'text.txt'], {
    cwd: folder,
    env: { ...process.env, RELORA_ADDRESS: address },
  });
  let output = '';
  child.stdout.on('data', (data: Buffer) => (output += data.toString()));
  child.stderr.on('data', (data: Buffer) => (output += data.toString()));
  const [code] = (await once(child, 'exit')) as [number];
  expect([code, output]).toEqual([0, expect.stringContaining('merged, norm of change')]);
  expect(readdirSync(join(folder, 'weights'))).toContain('model.safetensors');
});
