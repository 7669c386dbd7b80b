import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  ArtifactState,
  ExportFormat,
  ReloraClient,
  WeightType,
  parseJobSpec,
  type JobEvent,
} from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { startServerProcess, type ServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

function clientOf(server: ServerProcess): ReloraClient {
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  return client;
}

async function uploadText(client: ReloraClient): Promise<void> {
  await client.uploadDataset({
    datasetId: 'tiny-text',
    files: [{ fileName: 'tiny.txt', content: tinyText() }],
    spec: { tokenizer: { bytes: {} }, heldOutShare: 0.1 },
  });
}

/** A server with a finished job. */
async function afterJob(stepCount = 40) {
  const folder = temporaryFolder();
  const server = await startServerProcess(folder);
  const client = clientOf(server);
  await uploadText(client);
  const { name } = await client.createJob(parseJobSpec(tinySpec(stepCount)));
  await client.waitForJob(name);
  return { folder, server, client, name };
}

async function finalSha256(client: ReloraClient, job: string): Promise<string> {
  const model = (await client.listArtifacts(job)).find(({ name }) => name.includes('/merged-model-'))!;
  return model.files.find(({ fileName }) => fileName === 'model.safetensors')!.sha256;
}

const jobFolder = (folder: string, name: string) => join(folder, name);

/** Child processes of the server. */
function childrenOf({ process }: ServerProcess): number[] {
  const text = readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, 'utf8').trim();
  return text === '' ? [] : text.split(' ').map(Number);
}

/** The process may have ended in between. */
function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

test('a running job is exported as it is, in every layout, and ends with the bits of one that was not', async () => {
  const client = clientOf(await startServerProcess(temporaryFolder()));
  await uploadText(client);
  const spec = parseJobSpec(tinySpec(200));
  const undisturbed = await client.createJob(spec);
  await client.waitForJob(undisturbed.name);

  const { name } = await client.createJob(spec);
  const wanted = [ExportFormat.HUGGING_FACE, ExportFormat.PEFT, ExportFormat.GGUF];
  const pending: Promise<string>[] = [];
  const onEvent = ({ kind, step }: JobEvent & { step?: { step: number } }) => {
    const format = kind === 'step' && step!.step % 13 === 0 && step!.step > 20 ? wanted.shift() : undefined;
    if (format !== undefined)
      pending.push(client.exportWeights(name, { format }).then((artifact) => artifact.name));
  };
  await client.waitForJob(name, { onEvent: onEvent as (event: JobEvent) => void });
  expect(pending).toHaveLength(3);
  for (const made of await Promise.all(pending)) {
    const artifact = await client.waitForArtifact(made);
    expect(artifact.step).toBeGreaterThan(20);
    expect(artifact.step).toBeLessThanOrEqual(210);
    const folder = temporaryFolder();
    const paths = await client.downloadArtifact(made, folder);
    expect(paths).toHaveLength(artifact.files.length);
    const manifest = JSON.parse(readFileSync(join(folder, 'relora_manifest.json'), 'utf8')) as object;
    expect(manifest).toMatchObject({ lineage: { job: name, step: artifact.step, cycle: artifact.cycle } });
    if (artifact.format === ExportFormat.PEFT)
      expect(existsSync(join(folder, 'base/config.json'))).toBe(true);
  }
  expect(await finalSha256(client, name)).toBe(await finalSha256(client, undisturbed.name));
});

test('a kept checkpoint of an ended job is exported by its step, and what cannot be is refused', async () => {
  const { folder, client, name } = await afterJob();
  const last = (await client.getJob(name)).progress!.step;
  const requestId = '6f0c38a1-9b4c-4d0e-8d44-0a5b0c7a2f11';
  const options = { format: ExportFormat.GGUF, weightType: WeightType.Q8_0, checkpointStep: last, requestId };
  const first = await client.exportWeights(name, options);
  const artifact = await client.waitForArtifact(first.name);
  expect(artifact).toMatchObject({
    step: last,
    format: 'EXPORT_FORMAT_GGUF',
    weightType: 'WEIGHT_TYPE_Q8_0',
  });
  expect(artifact.castErrorMax).toBeGreaterThan(0);
  // Repeating it gives the same export; the same id with another request is refused.
  expect((await client.exportWeights(name, options)).name).toBe(first.name);
  await expect(client.exportWeights(name, { requestId })).rejects.toMatchObject({
    reason: 'REQUEST_ID_REUSED',
  });

  // The newest checkpoint has the final weights.
  const again = await client.waitForArtifact((await client.exportWeights(name)).name);
  expect(again.files.find(({ fileName }) => fileName === 'model.safetensors')!.sha256).toBe(
    await finalSha256(client, name),
  );

  await expect(client.exportWeights(name, { checkpointStep: 3 })).rejects.toThrow(
    /no checkpoint of step 3; it has those of the steps \d+/,
  );
  await expect(client.exportWeights(name, { weightType: WeightType.Q8_0 })).rejects.toThrow(
    'Q8_0 is for GGUF',
  );
  const sharded = client.exportWeights(name, { format: ExportFormat.GGUF, shardBytesMax: 1000 });
  await expect(sharded).rejects.toThrow('shard_bytes_max: expected none for GGUF');
  await expect(client.exportWeights('jobs/nobody')).rejects.toMatchObject({ reason: 'JOB_NOT_FOUND' });

  await client.deleteArtifact(again.name);
  await expect(client.getArtifact(again.name)).rejects.toMatchObject({ reason: 'ARTIFACT_NOT_FOUND' });
  expect(readdirSync(join(jobFolder(folder, name), 'artifacts'))).toHaveLength(2);
});

test('an export that the kill of the server interrupts is made by the next one, with no half artifact before', async () => {
  const { folder, server, client, name } = await afterJob();
  const { name: artifact } = await client.exportWeights(name);
  expect((await client.getArtifact(artifact)).state).toBe(ArtifactState.PENDING);
  await expect(client.downloadArtifact(artifact, temporaryFolder())).rejects.toThrow('is PENDING');
  server.process.kill('SIGKILL');
  await server.exited;

  const next = clientOf(await startServerProcess(folder));
  const made = await next.waitForArtifact(artifact);
  await next.downloadArtifact(artifact, temporaryFolder()); // verifies every SHA-256
  expect(made.files.length).toBeGreaterThan(4);
  expect(existsSync(join(jobFolder(folder, name), 'exports'))).toBe(false);
  expect(readdirSync(join(jobFolder(folder, name), 'artifacts'))).toHaveLength(2);
});

test.skipIf(process.platform !== 'linux')(
  'an export whose process is killed starts again, and one that is killed each time fails',
  async () => {
    const { folder, server, client, name } = await afterJob();
    const isIdle = () => childrenOf(server).length === 0;
    await expect.poll(isIdle, { interval: 20 }).toBe(true);
    const killChild = async () => {
      await expect.poll(isIdle, { interval: 2 }).toBe(false);
      kill(childrenOf(server)[0]!);
      await expect.poll(isIdle, { interval: 2 }).toBe(true);
    };

    const once = await client.exportWeights(name, { format: ExportFormat.PEFT });
    await killChild();
    expect((await client.waitForArtifact(once.name)).state).toBe(ArtifactState.READY);

    await expect.poll(isIdle, { interval: 20 }).toBe(true);
    const twice = await client.exportWeights(name, { format: ExportFormat.PEFT });
    const ended = client.waitForArtifact(twice.name).catch((error: unknown) => error);
    for (let isOver = false; !isOver;) {
      const child = childrenOf(server)[0];
      if (child !== undefined) kill(child);
      isOver = await Promise.race([
        ended.then(() => true),
        new Promise<false>((r) => setImmediate(r, false)),
      ]);
    }
    expect(await ended).toMatchObject({ reason: 'TASK_CRASHED' });
    expect(readdirSync(join(jobFolder(folder, name), 'artifacts'))).toHaveLength(2);
    expect(existsSync(join(jobFolder(folder, name), 'exports'))).toBe(false);
  },
);

test('a job exports every layout that it names at its end', async () => {
  const client = clientOf(await startServerProcess(temporaryFolder()));
  await uploadText(client);
  const spec = parseJobSpec({
    ...tinySpec(30),
    export: { formats: ['HUGGING_FACE', 'PEFT', 'GGUF'].map((word) => `EXPORT_FORMAT_${word}`) },
  });
  const { name } = await client.createJob(spec);
  await client.waitForJob(name);
  const artifacts = await client.listArtifacts(name);
  expect(artifacts.map((artifact) => artifact.name.split('/').at(-1))).toEqual([
    'merged-model-1',
    'adapter-1',
    'gguf-1',
  ]);
  expect(new Set(artifacts.map(({ step, state }) => `${step} ${state}`)).size).toBe(1);
  const folder = temporaryFolder();
  await client.downloadArtifact(name, folder); // the model, although another layout is newer
  expect(existsSync(join(folder, 'config.json'))).toBe(true);
});
