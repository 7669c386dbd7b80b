import { JobState, type JobEvent } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder } from './tinyJob.js';
import {
  clientsOf,
  createTinyJob,
  statesOf,
  uploadTinyText,
  watchUntil,
  weightsSha256,
} from './watchedJob.js';

// Far more than a trainer can do before its end is noticed.
const stepCount = 300;

test('a job whose server is killed resumes when it is started again and ends with the same weights', async () => {
  const folder = temporaryFolder();
  const first = await startServerProcess(folder);
  const before = clientsOf(first.grpcAddress);
  await uploadTinyText(before);
  const undisturbed = await createTinyJob(before, stepCount);
  await watchUntil(before, undisturbed, [], () => false);
  const expected = await weightsSha256(before, undisturbed);

  const name = await createTinyJob(before, stepCount);
  const events: JobEvent[] = [];
  await watchUntil(before, name, events, ({ checkpoint }) => (checkpoint?.step ?? 0) >= 20);
  first.process.kill('SIGKILL');
  await first.exited;

  const second = await startServerProcess(folder);
  const after = clientsOf(second.grpcAddress);
  await watchUntil(after, name, events, () => false);
  expect(events.at(-1)?.final).toBe(true);
  expect(statesOf(events)).toEqual([
    JobState.QUEUED,
    JobState.STARTING,
    JobState.RUNNING,
    JobState.QUEUED,
    JobState.STARTING,
    JobState.RUNNING,
    JobState.SUCCEEDED,
  ]);
  // It resumed from its checkpoint, not from the beginning.
  const resumed = events.find(({ step, attempt }) => step !== undefined && attempt === 2);
  expect(resumed?.step?.step).toBeGreaterThanOrEqual(20);
  expect(await weightsSha256(after, name)).toBe(expected);
});

test('a job that was heard to have finished is finished, with its files, whatever ends the server that instant', async () => {
  const folder = temporaryFolder();
  let server = await startServerProcess(folder);
  let clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  for (let round = 0; round < 3; round++) {
    const name = await createTinyJob(clients, 20);
    await watchUntil(clients, name, [], ({ final }) => final);
    server.process.kill('SIGKILL');
    await server.exited;
    server = await startServerProcess(folder);
    clients = clientsOf(server.grpcAddress);
    expect((await clients.training.getJob({ name })).job).toMatchObject({
      state: JobState.SUCCEEDED,
      attempt: 1,
    });
    expect(await weightsSha256(clients, name)).toMatch(/^[0-9a-f]{64}$/);
  }
});

test('a server that gets SIGTERM saves its job and exits with 0, and the job resumes without repeating a step', async () => {
  const folder = temporaryFolder();
  const first = await startServerProcess(folder);
  const before = clientsOf(first.grpcAddress);
  await uploadTinyText(before);
  const name = await createTinyJob(before, stepCount);
  const events: JobEvent[] = [];
  await watchUntil(before, name, events, ({ step }) => step?.step === 15);
  const watchEnd = watchUntil(before, name, events, () => false).catch((error: unknown) => error);
  first.process.kill('SIGTERM');
  expect(await first.exited).toEqual({ code: 0, signal: null });
  expect(String(await watchEnd)).toContain('UNAVAILABLE');

  const second = await startServerProcess(folder);
  const after = clientsOf(second.grpcAddress);
  await watchUntil(after, name, events, () => false);
  expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
  const steps = events.flatMap(({ step }) => (step === undefined ? [] : [step.step]));
  expect(steps).toEqual(steps.map((_, index) => index));
});
