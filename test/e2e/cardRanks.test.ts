import { readlinkSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import type { JobEvent as WatchedEvent } from '@relora/sdk';
import { JobSpec, JobState, WaitReason, type JobEvent } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { libraryFolder, modelSettings } from '../cuda/modelServer.js';
import { childrenOf } from '../faults/processes.js';
import { launchers } from '../mpi.js';
import { patienceMs } from '../patience.mjs';
import { hasPostgres } from '../server/postgres.js';
import { ofFileAlone } from '../server/testStore.js';
import { fleet, uploaded, weightsOf } from './serverFleet.js';
import { startServerProcess, type ServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import {
  clientsOf,
  statesOf,
  uploadTinyText,
  watchUntil,
  weightsSha256,
  type Clients,
} from './watchedJob.js';

const libraries = ['libcuda.so.1', 'libnvrtc.so.13', 'libcublasLt.so.13'];
const withLibrary = () => modelSettings(libraryFolder([...libraries, 'libnccl.so.2']));
const withNccl = () => ({ ...withLibrary(), RELORA_NCCL: 'on' });

/** A server with two cards, of one slot each. */
async function start(
  settings: Record<string, string> = {},
): Promise<{ server: ServerProcess; clients: Clients }> {
  const server = await startServerProcess(temporaryFolder(), {
    ...modelSettings(),
    CUDA_MODEL_DEVICE_COUNT: '2',
    RELORA_RETRY_DELAY_SECONDS: '0.01',
    ...settings,
  });
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  return { server, clients };
}

/** Small enough for cards that are emulated thread by thread. */
const spec = (changes: object = {}) =>
  JobSpec.fromJSON({
    ...tinySpec(16),
    model: {
      config: { hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2 },
    },
    warm_start: { step_count: 2, warmup_step_count: 1 },
    adapter: { rank: 4, cycle_step_count: 8, restart_warmup_step_count: 1 },
    batch: { sequence_length: 16, sequence_count: 2, micro_batch_sequence_count: 1 },
    evaluation: { every_step_count: 7, token_count: 64, final_token_count: 64 },
    checkpoint: { every_step_count: 4 },
    ...changes,
  });

async function create({ training }: Clients, changes: object = {}): Promise<string> {
  return (await training.createJob({ spec: spec(changes) })).job!.name;
}

/** A job that runs until it is canceled. */
const long = { step_count: 8000, end_of_data: 'END_OF_DATA_REPEAT', checkpoint: { every_step_count: 1000 } };

/** Losses by step; for repeated steps the last one. */
function lossesOf(events: JobEvent[]): number[] {
  const losses: number[] = [];
  for (const { step } of events) if (step !== undefined) losses[step.step] = step.loss;
  return losses;
}

/** Versions of the libraries that decided the bits of a job, by name. */
async function librariesOf({ training }: Clients, name: string): Promise<Record<string, string>> {
  const { job } = await training.getJob({ name });
  return Object.fromEntries(job!.execution!.libraries.map((library) => [library.name, library.version]));
}

/** Watches a job to its end and kills a process after the first checkpoint of each of two attempts: first the second, then the first. */
async function watchWithKills(server: ServerProcess, clients: Clients, name: string): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  const kills: string[] = [];
  await watchUntil(clients, name, events, ({ checkpoint, attempt }) => {
    const rank = [1, 0][attempt - 1];
    if (checkpoint === undefined || rank === undefined || kills.length >= attempt) return false;
    kills.push(`${attempt} ${rank}`);
    process.kill(pidOf(server, name, rank), 'SIGKILL');
    return false;
  });
  expect(kills).toEqual(['1 1', '2 0']);
  expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
  const reasons = events.flatMap(({ state }) => state?.reason ?? []).join('\n');
  expect(reasons).toMatch(/Rank 1 of 2 was ended by SIGKILL/);
  return events;
}

/** The process of a rank: each writes into a folder of its own. */
function pidOf({ process: { pid } }: ServerProcess, name: string, rank: number): number {
  const folder = `${name}${rank === 0 ? '' : `/ranks/${rank}`}`;
  return childrenOf(pid!).find((child) => readlinkSync(`/proc/${child}/cwd`).endsWith(folder))!;
}

test(
  'a job on two cards learns what a job on one does, and survives the loss of either process with the same bits',
  async () => {
    const { server, clients } = await start();
    const [alone, undisturbed]: JobEvent[][] = [[], []];
    await watchUntil(clients, await create(clients), alone!, () => false);
    const whole = await create(clients, { replicas: 2 });
    await watchUntil(clients, whole, undisturbed!, () => false);
    expect(statesOf(undisturbed!).at(-1)).toBe(JobState.SUCCEEDED);
    const [wanted, got] = [lossesOf(alone!), lossesOf(undisturbed!)];
    expect(got).toHaveLength(18);
    for (const [step, loss] of got.entries()) expect(Math.abs(loss - wanted[step]!)).toBeLessThan(1e-3);
    const { job } = await clients.training.getJob({ name: whole });
    expect(job!.execution).toMatchObject({ backend: 'cuda', replicas: 2 });
    expect(await librariesOf(clients, whole)).not.toHaveProperty('nccl');

    const name = await create(clients, { replicas: 2 });
    expect(lossesOf(await watchWithKills(server, clients, name))).toEqual(got);
    expect(await weightsSha256(clients, name)).toBe(await weightsSha256(clients, whole));
  },
  patienceMs,
);

test(
  'cards with NCCL add gradients among themselves, which the record shows, and survive the loss of a process too',
  async () => {
    const { server, clients } = await start(withNccl());
    // Through the machine's memory, in the same order here: NCCL is there, but is only used if the operator says so.
    const plain = await start(withLibrary());
    const wanted: JobEvent[] = [];
    const throughHost = await create(plain.clients, { replicas: 2 });
    await watchUntil(plain.clients, throughHost, wanted, () => false);
    expect(await librariesOf(plain.clients, throughHost)).not.toHaveProperty('nccl');

    const name = await create(clients, { replicas: 2 });
    expect(lossesOf(await watchWithKills(server, clients, name))).toEqual(lossesOf(wanted));
    expect(await librariesOf(clients, name)).toMatchObject({ nccl: '2.27.3' });
    expect(await weightsSha256(clients, name)).toBe(await weightsSha256(plain.clients, throughHost));

    const rounded = await create(clients, { replicas: 2, reduction_type: 'REDUCTION_TYPE_BFLOAT16' });
    await watchUntil(clients, rounded, [], () => false);
    expect(await librariesOf(clients, rounded)).not.toHaveProperty('nccl');
  },
  patienceMs,
);

test(
  'a job whose cards cannot add is tried again, and fails with what NCCL says',
  async () => {
    const { clients } = await start({ ...withNccl(), CUDA_MODEL_FAIL_AFTER_SUMS: '2' });
    const events: JobEvent[] = [];
    const name = await create(clients, { replicas: 2 });
    await watchUntil(clients, name, events, () => false);
    expect(statesOf(events).at(-1)).toBe(JobState.FAILED);
    expect(events.at(-1)!.attempt).toBe(3);
    const { job } = await clients.training.getJob({ name });
    expect(job!.failure).toMatchObject({ reason: 'RANK_LOST' });
    expect(job!.failure!.message).toMatch(/adding over the cards: unhandled system error/);
  },
  patienceMs,
);

test(
  'a card that is lost ends the attempt with that reason, although the other process waits for its sums',
  async () => {
    const { clients } = await start({
      ...withNccl(),
      ...{ CUDA_MODEL_LOSE_AFTER_LAUNCHES: '100', CUDA_MODEL_LOSE_ORDINAL: '1' },
      ...{ RELORA_TRAINER_GRACE_SECONDS: '1', RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1' },
    });
    const events: JobEvent[] = [];
    const name = await create(clients, { replicas: 2 });
    await watchUntil(clients, name, events, () => false);
    expect(events.some(({ step }) => step !== undefined)).toBe(true);
    const { job } = await clients.training.getJob({ name });
    expect(job!.failure).toMatchObject({ reason: 'DEVICE_LOST' });
    expect(job!.failure!.message).toMatch(/Rank 1 of 2: .*CUDA_ERROR_ECC_UNCORRECTABLE/);
  },
  patienceMs,
);

test(
  'a job that waits for a card of another server starts when that releases it',
  async () => {
    const [holder, waiter] = [await start(), await start()];
    const holding = await create(holder.clients, long);
    await watchUntil(holder.clients, holding, [], ({ step }) => step !== undefined);
    const name = await create(waiter.clients, { replicas: 2 });
    const reason = async () => (await waiter.clients.training.getJob({ name })).job!.stateReason;
    await expect
      .poll(reason, { interval: 100, timeout: patienceMs })
      .toBe('Waits for 2 cards at once, of which 1 is free and kept for it');
    await holder.clients.training.cancelJob({ name: holding });
    const events: JobEvent[] = [];
    await watchUntil(waiter.clients, name, events, () => false);
    expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
  },
  patienceMs,
);

test(
  'a job of several cards waits until it has all of them, which nobody behind it takes',
  async () => {
    const { clients } = await start();
    const first = await create(clients, long);
    await watchUntil(clients, first, [], ({ step }) => step !== undefined);
    const gang = await create(clients, { replicas: 2 });
    const behind = await create(clients);
    const onProcessors = await create(clients, { device: 'native' });
    await watchUntil(clients, onProcessors, [], () => false);
    expect((await clients.training.explainJob({ name: gang })).message).toMatch(
      /takes 2 cards of one server at once, and 1 of 2/,
    );
    const { job } = await clients.training.getJob({ name: gang });
    expect(job!.stateReason).toBe('Waits for 2 cards at once, of which 1 is free and kept for it');
    expect((await clients.training.getJob({ name: behind })).job!.state).toBe(JobState.QUEUED);
    expect((await clients.training.explainJob({ name: behind })).reason).toBe(WaitReason.SLOTS_BUSY);
    await clients.training.cancelJob({ name: first });
    const [ofGang, ofBehind]: JobEvent[][] = [[], []];
    await watchUntil(clients, gang, ofGang!, () => false);
    await watchUntil(clients, behind, ofBehind!, () => false);
    const begins = (events: JobEvent[]) => events.find(({ state }) => state?.to === JobState.STARTING)!.time!;
    expect(begins(ofGang!).getTime()).toBeLessThan(begins(ofBehind!).getTime());
  },
  patienceMs,
);

test(
  'a job of more processes than the server has cards is refused when it is created, whatever slots the cards have',
  async (context) => {
    ofFileAlone(context, 'another server of the store may have more cards');
    const { clients } = await start({ RELORA_GPU_SLOTS: '4' });
    await expect(
      create(clients, { replicas: 4, device: 'cuda', batch: { sequence_count: 4 } }),
    ).rejects.toThrow(
      /spec.replicas: expected at most 2 on cuda, the cards of this server, of which each process takes one, got 4/,
    );
  },
  patienceMs,
);

const launcher = launchers.find(({ isMissing }) => !isMissing);

test.skipIf(launcher === undefined || !hasPostgres)(
  'cards of two servers train a job together as two cards of one do, also after a process is killed',
  async () => {
    const together = { RELORA_SLOTS: '1', RELORA_MPIRUN: launcher!.command, RELORA_MPI_HOST: 'localhost' };
    const [one, two] = [
      await serversWith(1, { CUDA_MODEL_DEVICE_COUNT: '2' }),
      await serversWith(2, together, (index) => ({ CUDA_MODEL_FIRST_DEVICE: String(index) })),
    ];
    const wanted = await trained(one, () => {});
    let isKilled = false;
    const got = await trained(two, (event, name) => {
      if (event.kind !== 'checkpoint' || isKilled) return;
      isKilled = true;
      const pids = two.servers.flatMap((server) => pidOf(server, name, 1) ?? []);
      expect(pids).toHaveLength(1);
      process.kill(pids[0]!, 'SIGKILL');
    });
    expect(isKilled).toBe(true);
    expect(got).toEqual(wanted);
  },
  patienceMs,
);

type Fleet = Awaited<ReturnType<typeof fleet>>;

async function serversWith(
  count: number,
  settings: Record<string, string>,
  settingsOf?: (index: number) => Record<string, string>,
): Promise<Fleet> {
  const all = { ...modelSettings(), RELORA_RETRY_DELAY_SECONDS: '0.01', ...settings };
  const servers = await fleet(count, pathToFileURL(temporaryFolder()).href, all, settingsOf);
  await uploaded(servers.client);
  return servers;
}

/** What two processes learned on cards. */
async function trained(
  { client }: Fleet,
  onEvent: (event: WatchedEvent, name: string) => void,
): Promise<{ losses: number[]; weights: string; backend: string; replicas: number }> {
  const { name } = await client.createJob(spec({ replicas: 2 }));
  const losses: number[] = [];
  for await (const event of client.watch(name)) {
    if (event.kind === 'step') losses[event.step.step] = event.step.loss;
    onEvent(event, name);
  }
  const { state, stateReason, execution } = await client.getJob(name);
  expect(state, stateReason).toBe(JobState.SUCCEEDED);
  const { backend, replicas } = execution!;
  return { losses, weights: await weightsOf(client, name), backend, replicas };
}
