import { readlinkSync } from 'node:fs';
import { JobSpec, JobState, WaitReason, type JobEvent } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { modelSettings } from '../cuda/modelServer.js';
import { childrenOf } from '../faults/processes.js';
import { patienceMs } from '../patience.mjs';
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

/** The process of a rank: each writes into a folder of its own. */
function pidOf({ process: { pid } }: ServerProcess, name: string, rank: number): number {
  const folder = `${name}${rank === 0 ? '' : `/ranks/${rank}`}`;
  return childrenOf(pid!).find((child) => readlinkSync(`/proc/${child}/cwd`).endsWith(folder))!;
}

test(
  'a job on two cards learns what a job on one does, and survives the loss of either process with the same bits',
  async () => {
    const { server, clients } = await start();
    const [alone, undisturbed, disturbed]: JobEvent[][] = [[], [], []];
    await watchUntil(clients, await create(clients), alone!, () => false);
    const whole = await create(clients, { replicas: 2 });
    await watchUntil(clients, whole, undisturbed!, () => false);
    expect(statesOf(undisturbed!).at(-1)).toBe(JobState.SUCCEEDED);
    const [wanted, got] = [lossesOf(alone!), lossesOf(undisturbed!)];
    expect(got).toHaveLength(18);
    for (const [step, loss] of got.entries()) expect(Math.abs(loss - wanted[step]!)).toBeLessThan(1e-3);
    const { job } = await clients.training.getJob({ name: whole });
    expect(job!.execution).toMatchObject({ backend: 'cuda', replicas: 2 });

    const name = await create(clients, { replicas: 2 });
    const kills: string[] = [];
    await watchUntil(clients, name, disturbed!, ({ checkpoint, attempt }) => {
      // First the second process, then the one that talks to the server.
      const rank = [1, 0][attempt - 1];
      if (checkpoint === undefined || rank === undefined || kills.length >= attempt) return false;
      kills.push(`${attempt} ${rank}`);
      process.kill(pidOf(server, name, rank), 'SIGKILL');
      return false;
    });
    expect(kills).toEqual(['1 1', '2 0']);
    expect(statesOf(disturbed!).at(-1)).toBe(JobState.SUCCEEDED);
    const reasons = disturbed!.flatMap(({ state }) => state?.reason ?? []).join('\n');
    expect(reasons).toMatch(/Rank 1 of 2 was ended by SIGKILL/);
    expect(lossesOf(disturbed!)).toEqual(got);
    expect(await weightsSha256(clients, name)).toBe(await weightsSha256(clients, whole));
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
  async () => {
    const { clients } = await start({ RELORA_GPU_SLOTS: '4' });
    await expect(
      create(clients, { replicas: 4, device: 'cuda', batch: { sequence_count: 4 } }),
    ).rejects.toThrow(
      /spec.replicas: expected at most 2 on cuda, the cards of this server, of which each process takes one, got 4/,
    );
  },
  patienceMs,
);
