import { JobState, type JobEvent } from '@relora/sdk/contract';
import { createLog, readConfig, startServer } from '@relora/server';
import { expect, onTestFinished, test } from 'vitest';
import { patientSettings } from '../patience.mjs';
import { storeSettings } from '../server/testStore.js';
import { temporaryFolder } from './tinyJob.js';
import {
  clientsOf,
  createTinyJob,
  statesOf,
  uploadTinyText,
  watchUntil,
  weightsSha256,
} from './watchedJob.js';

// A trainer is at most 64 messages ahead of the server: it cannot finish before it is paused and killed.
const stepCount = 300;

async function serverWithThreads(threads: number) {
  const dataFolder = temporaryFolder();
  const config = readConfig({
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    RELORA_RETRY_DELAY_SECONDS: '0.01',
    RELORA_THREADS: String(threads),
    RELORA_LOG_LEVEL: 'silent',
    ...patientSettings,
    ...(await storeSettings(dataFolder)),
  });
  const server = await startServer(config, { log: createLog(config) });
  onTestFinished(async () => await server.stop());
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  return { server, clients };
}

test('the same spec and seed give the same weights with one thread, with two, over a pause and a killed trainer', async () => {
  const one = await serverWithThreads(1);
  const undisturbed = await createTinyJob(one.clients, stepCount);
  await watchUntil(one.clients, undisturbed, [], () => false);

  const two = await serverWithThreads(2);
  const name = await createTinyJob(two.clients, stepCount);
  const events: JobEvent[] = [];
  await watchUntil(two.clients, name, events, ({ checkpoint }) => (checkpoint?.step ?? 0) >= 20);
  expect((await two.clients.training.pauseJob({ name })).job?.state).toBe(JobState.PAUSED);
  await two.clients.training.resumeJob({ name });
  await watchUntil(two.clients, name, events, ({ attempt, step }) => step !== undefined && attempt === 2);
  process.kill(two.server.trainerPid(name.replace('jobs/', ''))!, 'SIGKILL');
  await watchUntil(two.clients, name, events, () => false);
  expect(statesOf(events).filter((state) => state === JobState.RUNNING)).toHaveLength(3);

  expect(await weightsSha256(two.clients, name)).toBe(await weightsSha256(one.clients, undisturbed));

  const executionOf = async ({ training }: typeof one.clients, job: string) =>
    (await training.getJob({ name: job })).job!.execution!;
  const execution = await executionOf(one.clients, undisturbed);
  expect(execution).toMatchObject({
    nodeVersion: process.versions.node,
    tfjsVersion: expect.stringMatching(/^\d+\.\d+\.\d+$/) as string,
    specSha256: expect.stringMatching(/^[0-9a-f]{64}$/) as string,
    baseWeightsSha256: '',
  });
  expect(execution.graphs).toHaveLength(7);
  // In the recorded environment only the number of threads differs.
  expect(await executionOf(two.clients, name)).toEqual({ ...execution, threadCount: 2 });

  // The killed trainer repeated its unsaved work, but every restart is listed only once.
  const restartsOf = async ({ training }: typeof one.clients, job: string) =>
    (await training.listRestarts({ parent: job })).restarts.map(({ event }) => ({ ...event!, seconds: 0 }));
  const restarts = await restartsOf(two.clients, name);
  expect(restarts.map(({ restart }) => restart)).toEqual(restarts.map((_, index) => index + 1));
  expect(restarts.length).toBeGreaterThan(5);
  expect(restarts).toEqual(await restartsOf(one.clients, undisturbed));
});
