import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { JobSpec, JobState, ServerServiceDefinition, type JobEvent } from '@relora/sdk/contract';
import { createChannel, createClient } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { modelSettings } from '../cuda/modelServer.js';
import { patienceMs } from '../patience.mjs';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import {
  clientsOf,
  statesOf,
  uploadTinyText,
  watchUntil,
  weightsSha256,
  type Clients,
} from './watchedJob.js';

/** Small enough for a card that is emulated thread by thread. */
const spec = (changes: object = {}) =>
  JobSpec.fromJSON({
    ...tinySpec(16),
    model: {
      config: { hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2 },
    },
    warm_start: { step_count: 2, warmup_step_count: 1 },
    adapter: { rank: 4, cycle_step_count: 8, restart_warmup_step_count: 1 },
    batch: { sequence_length: 16, sequence_count: 2, micro_batch_sequence_count: 2 },
    evaluation: { every_step_count: 7, token_count: 64, final_token_count: 64 },
    checkpoint: { every_step_count: 2 },
    ...changes,
  });

/** A job that runs until it is canceled. */
const long = () =>
  spec({ step_count: 8000, end_of_data: 'END_OF_DATA_REPEAT', checkpoint: { every_step_count: 1000 } });

const create = async ({ training }: Clients, of = spec()) =>
  (await training.createJob({ spec: of })).job!.name;

const stateOf = async ({ training }: Clients, name: string) => (await training.getJob({ name })).job!.state;

test(
  'a card that is lost in the middle of a job ends the attempt with that reason, and the job has the weights of an undisturbed one',
  async () => {
    const folder = temporaryFolder();
    const settings = modelSettings();
    // Enough launches for a few checkpoints, but not for the whole job.
    const losing = await startServerProcess(folder, { ...settings, CUDA_MODEL_LOSE_AFTER_LAUNCHES: '900' });
    const before = clientsOf(losing.grpcAddress);
    await uploadTinyText(before);
    const name = await create(before);
    const events: JobEvent[] = [];
    const isLost = ({ state }: JobEvent) => /DEVICE_LOST/.test(state?.reason ?? '');
    await watchUntil(before, name, events, isLost);
    expect(
      events.some(({ checkpoint }) => checkpoint !== undefined),
      'there was progress',
    ).toBe(true);
    losing.process.kill('SIGKILL');
    await losing.exited;

    const sound = await startServerProcess(folder, settings);
    const after = clientsOf(sound.grpcAddress);
    await watchUntil(after, name, events, () => false);
    expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
    const undisturbed = await create(after);
    await watchUntil(after, undisturbed, [], () => false);
    expect(await weightsSha256(after, name)).toBe(await weightsSha256(after, undisturbed));
  },
  patienceMs,
);

test(
  'a card whose memory another program has taken ends the attempt with figures, and the job resumes when it is free again',
  async () => {
    const others = join(temporaryFolder(), 'others');
    const settings = {
      ...modelSettings(),
      CUDA_MODEL_OTHERS_FILE: others,
      // Memory used by others is read from a file here, which a sandboxed trainer cannot open; a real driver asks the card.
      RELORA_SANDBOX: 'off',
      RELORA_RETRY_DELAY_SECONDS: '0.2',
      RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1000',
    };
    const server = await startServerProcess(temporaryFolder(), settings);
    const clients = clientsOf(server.grpcAddress);
    await uploadTinyText(clients);
    const name = await create(clients);
    const events: JobEvent[] = [];
    await watchUntil(clients, name, events, ({ checkpoint }) => checkpoint !== undefined);
    await clients.training.pauseJob({ name });
    await watchUntil(clients, name, events, ({ state }) => state?.to === JobState.PAUSED);
    const savedStep = events.findLast(({ checkpoint }) => checkpoint !== undefined)!.checkpoint!.step;

    // Of 8 GiB: leaves room for the product library, but not for the run.
    writeFileSync(others, String(2 ** 33 - 2 ** 25 - 2 ** 21));
    await clients.training.resumeJob({ name });
    const figures = /needs [\d.]+ GiB of the card's memory, of which [\d.]+ GiB are free/;
    const isRefused = ({ state }: JobEvent) => figures.test(state?.reason ?? '');
    await watchUntil(clients, name, events, isRefused);
    await watchUntil(clients, name, events, isRefused);
    const { state } = events.at(-1)!;
    expect(state!.to, 'it waits for the next attempt').toBe(JobState.QUEUED);

    writeFileSync(others, '0');
    const again = events.length;
    await watchUntil(clients, name, events, () => false);
    expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
    const firstStep = events.slice(again).find(({ step }) => step !== undefined)!.step!.step;
    expect(firstStep, 'it resumes where it was paused').toBe(savedStep);
    const undisturbed = await create(clients);
    await watchUntil(clients, undisturbed, [], () => false);
    expect(await weightsSha256(clients, name)).toBe(await weightsSha256(clients, undisturbed));
  },
  patienceMs,
);

test(
  'two cards are two places: two jobs run at once, each on its own',
  async () => {
    const server = await startServerProcess(temporaryFolder(), {
      ...modelSettings(),
      CUDA_MODEL_DEVICE_COUNT: '2',
    });
    const clients = clientsOf(server.grpcAddress);
    const channel = createChannel(server.grpcAddress);
    onTestFinished(() => channel.close());
    const { devices } = await createClient(ServerServiceDefinition, channel).getServerInfo({});
    const uuids = devices.filter(({ backend }) => backend === 'cuda').map(({ uuid }) => uuid);
    expect(new Set(uuids).size).toBe(2);

    await uploadTinyText(clients);
    const names = [await create(clients, long()), await create(clients, long())];
    for (const name of names) await watchUntil(clients, name, [], ({ step }) => step !== undefined);
    const used = new Set<string>();
    for (const name of names) {
      const { job } = await clients.training.getJob({ name });
      expect(job!.state).toBe(JobState.RUNNING);
      used.add(job!.execution!.cardUuid);
    }
    expect([...used].sort()).toEqual([...uuids].sort());
    for (const name of names) await clients.training.cancelJob({ name });
  },
  patienceMs,
);

test(
  'on a card that another server of the machine uses a job waits, says for what, and starts when the card is free',
  async () => {
    const [holder, waiter] = [
      clientsOf((await startServerProcess(temporaryFolder(), modelSettings())).grpcAddress),
      clientsOf((await startServerProcess(temporaryFolder(), modelSettings())).grpcAddress),
    ];
    await uploadTinyText(holder);
    await uploadTinyText(waiter);
    const holding = await create(holder, long());
    await watchUntil(holder, holding, [], ({ step }) => step !== undefined);

    const waiting = await create(waiter);
    const reasonOf = async () => (await waiter.training.getJob({ name: waiting })).job!.stateReason;
    await expect
      .poll(reasonOf, { interval: 100, timeout: patienceMs })
      .toMatch(/another server on this machine uses Model of a card GPU-/);
    expect(await stateOf(waiter, waiting)).toBe(JobState.QUEUED);

    await holder.training.cancelJob({ name: holding });
    const events: JobEvent[] = [];
    await watchUntil(waiter, waiting, events, () => false);
    expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
  },
  patienceMs,
);
