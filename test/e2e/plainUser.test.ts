import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, cpSync, mkdirSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { ReloraClient, parseJobSpec, type Job } from '@relora/sdk';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { patienceMs } from '../patience.mjs';
import { ofFileAlone } from '../server/testStore.js';
import { canBePlainUser, own, ownedFolder, startAsPlainUser } from './plainUser.js';
import type { ServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

/** Makes a folder read-only, and returns a function that undoes it; the end of the test does so too. */
function closeFolder(folder: string): () => void {
  chmodSync(folder, 0o555);
  const open = (): void => chmodSync(folder, 0o755);
  onTestFinished(open);
  return open;
}

function clientOf(server: ServerProcess): ReloraClient {
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  return client;
}

async function uploadText(client: ReloraClient, datasetId = 'tiny-text'): Promise<void> {
  await client.uploadDataset({ datasetId, files: [{ fileName: 'tiny.txt', content: tinyText() }] });
}

const train = async (client: ReloraClient, stepCount = 20): Promise<Job> =>
  await client.waitForJob((await client.createJob(parseJobSpec(tinySpec(stepCount)))).name);

async function killed(server: ServerProcess): Promise<void> {
  server.process.kill('SIGKILL');
  await server.exited;
}

const cure = 'give the user of the server the right to write there';

describe.skipIf(!canBePlainUser)('a server whose user is not root', () => {
  beforeEach((context) => ofFileAlone(context, 'its folder has all that may be forbidden'));

  it('fails an export alone whose job has a folder of mode 555, also over its next starts', async () => {
    const dataFolder = ownedFolder();
    const server = await startAsPlainUser(dataFolder);
    const client = clientOf(server);
    await uploadText(client);
    const [job, healthy] = [await train(client), await train(client)];
    const folder = join(dataFolder, job.name);
    const open = closeFolder(folder);
    const failing = await client.exportWeights(job.name);
    const failure = { reason: 'STORAGE_UNWRITABLE', message: expect.stringContaining(folder) as string };
    await expect(client.waitForArtifact(failing.name)).rejects.toMatchObject(failure);
    await expect(client.waitForArtifact(failing.name)).rejects.toThrow(cure);
    await client.waitForArtifact((await client.exportWeights(healthy.name)).name);
    // Pending when the server is killed: its next start finds it.
    await client.exportWeights(job.name);
    await killed(server);

    const again = await startAsPlainUser(dataFolder);
    const other = clientOf(again);
    const artifacts = await other.listArtifacts(job.name);
    for (const { name } of artifacts.slice(2))
      await expect(other.waitForArtifact(name)).rejects.toMatchObject(failure);
    await uploadText(other, 'another');
    expect(again.process.exitCode).toBeNull();
    open();
    await other.waitForArtifact((await other.exportWeights(job.name)).name);
  });

  it('pauses a job whose checkpoints cannot be written, in the middle of a run, and resumes it', async () => {
    const dataFolder = ownedFolder();
    const client = clientOf(await startAsPlainUser(dataFolder));
    await uploadText(client);
    const { name } = await client.createJob(parseJobSpec(tinySpec(4000)));
    let open = (): void => {};
    for await (const event of client.watch(name)) {
      if (event.kind !== 'checkpoint') continue;
      open = closeFolder(join(dataFolder, name, 'checkpoints'));
      break;
    }
    const paused = await client.waitForJob(name, { untilPaused: true });
    expect(paused.state).toBe('JOB_STATE_PAUSED');
    expect(paused.stateReason).toContain(join(dataFolder, name, 'checkpoints'));
    expect(paused.stateReason).toContain(cure);
    open();
    await client.updateJob(name, { spec: { stepCount: paused.progress!.step + 20 } });
    await client.resumeJob(name);
    expect(await client.waitForJob(name)).toMatchObject({ state: 'JOB_STATE_SUCCEEDED' });
  });

  it('refuses uploads with path and cure while their folder cannot be written', async () => {
    const dataFolder = ownedFolder();
    const client = clientOf(await startAsPlainUser(dataFolder));
    await uploadText(client, 'first');
    const open = closeFolder(join(dataFolder, 'datasets'));
    const refused = uploadText(client, 'second');
    await expect(refused).rejects.toMatchObject({ reason: 'FOLDER_UNWRITABLE' });
    await expect(refused).rejects.toThrow(join(dataFolder, 'datasets'));
    await expect(refused).rejects.toThrow(cure);
    open();
    await uploadText(client, 'second');

    mkdirSync(join(dataFolder, 'weights'), { recursive: true });
    own(join(dataFolder, 'weights'));
    closeFolder(join(dataFolder, 'weights'));
    const weights = client.uploadWeights({ from: tinyModel() });
    await expect(weights).rejects.toMatchObject({ reason: 'FOLDER_UNWRITABLE' });
    await expect(weights).rejects.toThrow(join(dataFolder, 'weights'));
  });

  it('fails alone a data set that can no longer be written, and trains on others', async () => {
    const dataFolder = ownedFolder();
    const client = clientOf(await startAsPlainUser(dataFolder));
    await uploadText(client);
    // It is received completely before its preparation begins.
    mkdirSync(join(dataFolder, 'datasets/stuck'));
    own(join(dataFolder, 'datasets/stuck'));
    mkdirSync(join(dataFolder, 'datasets/stuck/uploads'));
    own(join(dataFolder, 'datasets/stuck/uploads'));
    closeFolder(join(dataFolder, 'datasets/stuck'));
    await expect(uploadText(client, 'stuck')).rejects.toMatchObject({ reason: 'STORAGE_UNWRITABLE' });
    await expect(client.getDataset('datasets/stuck')).resolves.toMatchObject({
      state: 'DATASET_STATE_FAILED',
    });
    expect(await train(client)).toMatchObject({ state: 'JOB_STATE_SUCCEEDED' });
  });

  it('keeps a job in the queue whose folder cannot be made, and says why', async () => {
    const dataFolder = ownedFolder();
    const client = clientOf(await startAsPlainUser(dataFolder));
    await uploadText(client);
    mkdirSync(join(dataFolder, 'jobs'), { recursive: true });
    own(join(dataFolder, 'jobs'));
    const open = closeFolder(join(dataFolder, 'jobs'));
    const { name } = await client.createJob(parseJobSpec(tinySpec(20)));
    await expect
      .poll(async () => (await client.getJob(name)).stateReason, { interval: 50, timeout: patienceMs })
      .toContain(cure);
    expect(await client.getJob(name)).toMatchObject({ state: 'JOB_STATE_QUEUED' });
    open();
    expect(await client.waitForJob(name)).toMatchObject({ state: 'JOB_STATE_SUCCEEDED' });
  });

  it.each([
    ['its data folder', (folder: string) => closeFolder(folder)],
    ['the store', (folder: string) => chmodSync(join(folder, 'store.db'), 0o444)],
  ])('says at its start that it cannot write %s, and what to do', async (_, close) => {
    const dataFolder = ownedFolder();
    await stopped(await startAsPlainUser(dataFolder));
    close(dataFolder);
    const starting = startAsPlainUser(dataFolder);
    await expect(starting).rejects.toThrow(/ended with code 1: relora-server: .*store\.db cannot be used/);
    await expect(starting).rejects.toThrow(dataFolder);
    await expect(starting).rejects.toThrow(cure);
  });

  it('ends with path and cure on a disk that is full at its start, and starts once there is room', async ({
    skip,
  }) => {
    const disk = join(own(temporaryFolder()), 'disk');
    mkdirSync(disk);
    const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=32m,mode=777', 'none', disk]);
    if (status !== 0) return skip('only root may mount a disk of its own');
    onTestFinished(() => void spawnSync('umount', ['-l', disk]));
    const filler = join(disk, 'filler');
    const file = openSync(filler, 'w');
    try {
      for (;;) writeSync(file, Buffer.alloc(4096));
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
    } finally {
      closeSync(file);
    }
    const dataFolder = join(disk, 'data');
    const starting = startAsPlainUser(dataFolder);
    await expect(starting).rejects.toThrow(/ended with code 1: relora-server: .*make room/);
    await expect(starting).rejects.toThrow(dataFolder);
    rmSync(filler);
    await stopped(await startAsPlainUser(dataFolder));
  });
});

async function stopped(server: ServerProcess): Promise<void> {
  server.process.kill('SIGTERM');
  expect(await server.exited).toEqual({ code: 0, signal: null });
}

/** A folder that the client takes for a model, and sends file by file. */
function tinyModel(): string {
  const folder = temporaryFolder();
  cpSync(new URL('../fixtures/cases/tied-head/', import.meta.url), folder, { recursive: true });
  writeFileSync(join(folder, 'model.safetensors'), 'not read before it is sent whole');
  return folder;
}
