import { existsSync, readFileSync } from 'node:fs';
import { JobSpec, JobState, WaitReason, type JobEvent } from '@relora/sdk/contract';
import { createLog, readConfig, startServer, type RunningServer } from '@relora/server';
import { expect, onTestFinished, test } from 'vitest';
import { Confinement } from '../../server/dist/trainer/confinement.js';
import { childrenOf } from '../faults/processes.js';
import { patientSettings } from '../patience.mjs';
import { ofFileAlone, storeSettings } from '../server/testStore.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import { clientsOf, statesOf, uploadTinyText, watchUntil, type Clients } from './watchedJob.js';

async function start(
  settings: Record<string, string> = {},
): Promise<{ server: RunningServer; clients: Clients }> {
  const dataFolder = temporaryFolder();
  const config = readConfig({
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    RELORA_RETRY_DELAY_SECONDS: '0.01',
    RELORA_SLOTS: '2',
    RELORA_THREADS: '1',
    RELORA_LOG_LEVEL: 'silent',
    ...patientSettings,
    ...(await storeSettings(dataFolder)),
    ...settings,
  });
  const server = await startServer(config, { log: createLog(config) });
  onTestFinished(async () => await server.stop());
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  return { server, clients };
}

async function create({ training }: Clients, stepCount: number, changes: Record<string, unknown> = {}) {
  const { job } = await training.createJob({
    spec: JobSpec.fromJSON({ ...tinySpec(stepCount), ...changes }),
  });
  return job!.name;
}

/** Final losses by step; for repeated steps the last one. */
function lossesOf(events: JobEvent[]): number[] {
  const losses: number[] = [];
  for (const { step } of events) if (step !== undefined) losses[step.step] = step.loss;
  return losses;
}

async function sha256Of({ artifacts }: Clients, job: string): Promise<string[]> {
  const { artifacts: found } = await artifacts.listArtifacts({ parent: job });
  const weights = found[0]!.files.filter(({ fileName }) => fileName.endsWith('.safetensors'));
  return weights.map(({ sha256 }) => sha256);
}

const idOf = (name: string): string => name.replace('jobs/', '');

test('a job of two processes learns what a job of one does, and survives the loss of either with the same bits', async () => {
  const { server, clients } = await start();
  const [alone, undisturbed, disturbed]: JobEvent[][] = [[], [], []];
  await watchUntil(clients, await create(clients, 60), alone!, () => false);
  const whole = await create(clients, 60, { replicas: 2 });
  await watchUntil(clients, whole, undisturbed!, () => false);
  const [wanted, got] = [lossesOf(alone!), lossesOf(undisturbed!)];
  expect(got).toHaveLength(70);
  for (const [step, loss] of got.entries()) expect(Math.abs(loss - wanted[step]!)).toBeLessThan(1e-3);

  const name = await create(clients, 60, { replicas: 2 });
  const kills: string[] = [];
  await watchUntil(clients, name, disturbed!, ({ checkpoint, attempt }) => {
    // First the second process, then the one that talks to the server.
    const rank = [1, 0][attempt - 1];
    if (checkpoint === undefined || rank === undefined || kills.length >= attempt) return false;
    const pids = server.rankPids(idOf(name));
    expect(pids).toHaveLength(2);
    kills.push(`${attempt} ${rank}`);
    process.kill(pids[rank]!, 'SIGKILL');
    return false;
  });
  expect(kills).toEqual(['1 1', '2 0']);
  expect(statesOf(disturbed!).at(-1)).toBe(JobState.SUCCEEDED);
  const reasons = disturbed!.flatMap(({ state }) => state?.reason ?? []).join('\n');
  expect(reasons).toMatch(/Rank 1 of 2 was ended by SIGKILL/);
  expect(lossesOf(disturbed!)).toEqual(got);
  expect(await sha256Of(clients, name)).toEqual(await sha256Of(clients, whole));
  const { job } = await clients.training.getJob({ name });
  expect(job!.execution!.replicas).toBe(2);
});

test('a rank that is frozen ends the attempt after the time that the settings say, and the job resumes', async () => {
  const { server, clients } = await start({
    RELORA_TRAINER_SILENCE_SECONDS: '3',
    RELORA_TRAINER_GRACE_SECONDS: '1',
  });
  const events: JobEvent[] = [];
  const name = await create(clients, 60, { replicas: 2 });
  let isFrozen = false;
  await watchUntil(clients, name, events, ({ checkpoint }) => {
    if (checkpoint !== undefined && !isFrozen) {
      isFrozen = true;
      process.kill(server.rankPids(idOf(name))[1]!, 'SIGSTOP');
    }
    return false;
  });
  expect(events.flatMap(({ state }) => state?.reason ?? []).join('\n')).toMatch(
    /Rank 1 of 2 was ended by SIG\w+ after 3 s of silence/,
  );
  expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
});

test('no process of a job lives on when its server is killed, and the job resumes with the same bits', async () => {
  const folder = temporaryFolder();
  const settings = { RELORA_SLOTS: '2', ...(await storeSettings(folder)) };
  const first = await startServerProcess(folder, settings);
  const before = clientsOf(first.grpcAddress);
  await uploadTinyText(before);
  const undisturbed: JobEvent[] = [];
  const whole = await create(before, 300, { replicas: 2 });
  await watchUntil(before, whole, undisturbed, () => false);
  const name = await create(before, 300, { replicas: 2 });
  const events: JobEvent[] = [];
  await watchUntil(before, name, events, ({ checkpoint }) => (checkpoint?.step ?? 0) >= 20);
  const children = childrenOf(first.process.pid!);
  expect(children.length).toBeGreaterThanOrEqual(2);
  first.process.kill('SIGKILL');
  await first.exited;
  await expect.poll(() => children.filter((pid) => existsSync(`/proc/${pid}`))).toEqual([]);

  const second = await startServerProcess(folder, settings);
  const after = clientsOf(second.grpcAddress);
  await watchUntil(after, name, events, () => false);
  expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
  expect(lossesOf(events)).toEqual(lossesOf(undisturbed));
  expect(await sha256Of(after, name)).toEqual(await sha256Of(after, whole));
});

test.each(['SYNCHRONIZATION_EVERY_STEP', 'SYNCHRONIZATION_EVERY_CYCLE'])(
  'ranks stop together for a pause, and a paused job resumes with the same bits: %s',
  async (synchronization) => {
    const { server, clients } = await start();
    const settings = { replicas: 2, synchronization };
    const undisturbed: JobEvent[] = [];
    await watchUntil(clients, await create(clients, 40, settings), undisturbed, () => false);
    const events: JobEvent[] = [];
    const name = await create(clients, 40, settings);
    await watchUntil(clients, name, events, ({ step }) => step?.step === 17);
    const pids = server.rankPids(idOf(name));
    const metrics = await (await fetch(`http://${server.httpAddress}/metrics`)).text();
    expect(metrics).toContain('\nrelora_slots_in_use 2\n');
    await clients.training.pauseJob({ name });
    await watchUntil(clients, name, events, ({ state }) => state?.to === JobState.PAUSED);
    await expect.poll(() => pids.filter((pid) => existsSync(`/proc/${pid}`))).toEqual([]);
    await clients.training.resumeJob({ name });
    await watchUntil(clients, name, events, () => false);
    expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
    expect(lossesOf(events)).toEqual(lossesOf(undisturbed));
  },
);

test('processes of a job are held to their folders by the kernel, each to its own', async (context) => {
  const { server, clients } = await start();
  if (new Confinement(readConfig({})).means === null) return context.skip();
  const events: JobEvent[] = [];
  const name = await create(clients, 2000, { replicas: 2 });
  await watchUntil(clients, name, events, ({ step }) => step?.step === 2);
  for (const pid of server.rankPids(idOf(name))) {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    expect(status).toMatch(/^NoNewPrivs:\s+1$/m);
    expect(status).toMatch(/^Seccomp:\s+2$/m);
  }
  await clients.training.cancelJob({ name });
});

test('a job of several processes waits until it has all of its slots, which nobody behind it takes', async () => {
  const { clients } = await start();
  const first = await create(clients, 100_000);
  await watchUntil(clients, first, [], ({ step }) => step !== undefined);
  const gang = await create(clients, 20, { replicas: 2 });
  const behind = await create(clients, 20);
  await expect
    .poll(async () => (await clients.training.explainJob({ name: gang })).message)
    .toMatch(/takes 2 slots of one server at once, and 1 of 2/);
  const { job } = await clients.training.getJob({ name: gang });
  expect(job!.stateReason).toBe('Waits for 2 slots at once, of which 1 is free and kept for it');
  expect((await clients.training.getJob({ name: behind })).job!.state).toBe(JobState.QUEUED);
  expect((await clients.training.explainJob({ name: behind })).reason).toBe(WaitReason.SLOTS_BUSY);
  await clients.training.cancelJob({ name: first });
  const [ofGang, ofBehind]: JobEvent[][] = [[], []];
  await watchUntil(clients, gang, ofGang!, () => false);
  await watchUntil(clients, behind, ofBehind!, () => false);
  const begins = (events: JobEvent[]) => events.find(({ state }) => state?.to === JobState.STARTING)!.time!;
  expect(begins(ofGang!).getTime()).toBeLessThan(begins(ofBehind!).getTime());
});

test('a job that may resumes with the slots that are free, and its record shows how many processes there were', async () => {
  const { clients } = await start();
  const events: JobEvent[] = [];
  const name = await create(clients, 300, { replicas: 2, replicas_min: 1 });
  await watchUntil(clients, name, events, ({ checkpoint }) => checkpoint !== undefined);
  await clients.training.pauseJob({ name });
  await watchUntil(clients, name, events, ({ state }) => state?.to === JobState.PAUSED);
  const other = await create(clients, 100_000);
  await watchUntil(clients, other, [], ({ step }) => step !== undefined);
  await clients.training.resumeJob({ name });
  await watchUntil(clients, name, events, ({ step, attempt }) => step !== undefined && attempt === 2);
  expect((await clients.training.getJob({ name })).job!.execution!.replicas).toBe(1);
  expect(events.flatMap(({ warning }) => warning?.reason ?? [])).toContain('RESUMED_WITH_OTHER_REPLICAS');
  for (const job of [name, other]) await clients.training.cancelJob({ name: job });
});

test('a job of more processes than the server has slots is refused when it is created', async (context) => {
  ofFileAlone(context, 'another server of the store may have more slots');
  const { clients } = await start();
  await expect(create(clients, 20, { replicas: 4 })).rejects.toThrow(
    /spec.replicas: expected at most 2, the slots of this server \(RELORA_SLOTS\).*, got 4/,
  );
});
