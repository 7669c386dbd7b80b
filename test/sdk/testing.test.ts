import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { JobState, ReloraClient, type JobEvent } from '@relora/sdk';
import { startTestServer, type TestServer } from '@relora/sdk/testing';
import { expect, onTestFinished, test } from 'vitest';
import { temporaryFolder } from '../e2e/tinyJob.js';

const spec = { dataset: 'datasets/tales', stepCount: 20 };

async function open(): Promise<{ server: TestServer; client: ReloraClient }> {
  const server = await startTestServer();
  server.addDataset('tales');
  const client = new ReloraClient({ address: server.address, retries: { initialDelayMs: 1, maxDelayMs: 4 } });
  onTestFinished(async () => {
    client.close();
    await server.stop();
  });
  return { server, client };
}

async function eventsOf(client: ReloraClient, name: string): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  for await (const event of client.watch(name)) events.push(event);
  return events;
}

test('a job is launched, watched to its end and fetched, as from a real server', async () => {
  const { server, client } = await open();
  server.scriptNext({
    loss: (step) => 3 - step / 10,
    files: { 'model.safetensors': Buffer.alloc(200_000, 7) },
  });
  const { name } = await client.createJob(spec, { labels: { team: 'tales' } });
  const ended = await client.waitForJob(name);
  expect(ended).toMatchObject({
    state: JobState.SUCCEEDED,
    labels: { team: 'tales' },
    progress: { step: 20 },
  });
  const events = await eventsOf(client, name);
  expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
  const losses = events.flatMap((event) => (event.kind === 'step' ? [event.step.loss] : []));
  expect(losses).toHaveLength(20);
  expect(losses[10]).toBe(2);
  expect(events.at(-1)!.final).toBe(true);
  const folder = temporaryFolder();
  await client.downloadArtifact(name, folder);
  expect(readFileSync(join(folder, 'model.safetensors'))).toEqual(Buffer.alloc(200_000, 7));
  expect(server.calls).toContain('createJob');
});

test('a watch that breaks resumes where it was, and calls that fail are repeated', async () => {
  const { server, client } = await open();
  server.script({ stepMs: 10 });
  server.failNext('createJob', 'UNAVAILABLE', { times: 2 });
  const { name } = await client.createJob(spec);
  const sequences: number[] = [];
  const watchCount = (): number => server.calls.filter((call) => call === 'watchJob').length;
  let breaks = 0;
  for await (const { sequence } of client.watch(name)) {
    sequences.push(sequence);
    // What arrived before the break may be read after it, so the next stream has to be there before it can break.
    if (sequences.length < 3 || breaks === 2 || watchCount() === breaks) continue;
    server.breakStreams();
    breaks = watchCount();
  }
  expect(sequences).toEqual(sequences.map((_, index) => index + 1));
  expect(server.calls.filter((call) => call === 'createJob')).toHaveLength(3);
  expect(watchCount()).toBe(3);
});

test('a job fails as the script says, and is paused, resumed and cancelled', async () => {
  const { server, client } = await open();
  server.scriptNext({ fail: { step: 7, reason: 'LOSS_NOT_FINITE', message: 'The loss is NaN' } });
  const failing = client.createJob(spec).then(async ({ name }) => await client.waitForJob(name));
  await expect(failing).rejects.toMatchObject({ name: 'JobFailedError', reason: 'LOSS_NOT_FINITE' });

  // Long enough that the job is resumed within the step in which it was paused.
  server.scriptNext({ stepMs: 100 });
  const { name } = await client.createJob({ ...spec, stepCount: 10_000 });
  await expect.poll(async () => (await client.getJob(name)).progress!.step).toBeGreaterThan(2);
  expect((await client.pauseJob(name)).state).toBe(JobState.PAUSED);
  const { step } = (await client.getJob(name)).progress!;
  expect((await client.getJob(name)).progress!.checkpointStep).toBe(step);
  await client.resumeJob(name);
  await expect.poll(async () => (await client.getJob(name)).progress!.step).toBeGreaterThan(step);
  expect((await client.cancelJob(name)).state).toBe(JobState.CANCELLED);
});

test('the same request is the same job, and what is not there is said', async () => {
  const { client } = await open();
  const requestId = '00000000-0000-4000-8000-000000000001';
  const [first, second] = [
    await client.createJob(spec, { requestId }),
    await client.createJob(spec, { requestId }),
  ];
  expect(second.name).toBe(first.name);
  await expect(client.createJob({ dataset: 'datasets/none' })).rejects.toMatchObject({ code: 'NOT_FOUND' });
  await expect(client.explainJob(first.name)).rejects.toMatchObject({
    code: 'UNIMPLEMENTED',
    message: expect.stringContaining('explainJob') as string,
  });
  const uploaded = await client.uploadDataset({ files: [{ content: 'Once upon a time' }] });
  expect((await client.getDataset(uploaded.name)).name).toBe(uploaded.name);
});

test('of several addresses those are used where a server answers, also after one is lost', async () => {
  const [one, two] = [await startTestServer(), await startTestServer()];
  onTestFinished(async () => {
    await one.stop();
    await two.stop();
  });
  // Nothing ever listens at the first one.
  const address = ['127.0.0.1:1', one.address, two.address].join(',');
  using client = new ReloraClient({ address, retries: { initialDelayMs: 1, maxDelayMs: 4 } });
  const info = async (): Promise<void> => void (await client.serverInfo());
  while (one.calls.length === 0 || two.calls.length === 0) await info();

  await one.stop();
  const before = two.calls.length;
  for (let call = 0; call < 10; call++) await info();
  expect(two.calls.length).toBe(before + 10);

  await two.stop();
  using hasty = new ReloraClient({ address, retries: { attemptsMax: 1 } });
  await expect(hasty.serverInfo()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
});

test('it is there for require as well', async () => {
  const { startTestServer: start } = createRequire(import.meta.url)('@relora/sdk/testing') as {
    startTestServer: typeof startTestServer;
  };
  const server = await start();
  expect(server.address).toMatch(/^127\.0\.0\.1:\d+$/);
  await server.stop();
});
