import {
  ArtifactServiceDefinition,
  ArtifactState,
  ExportFormat,
  JobSpec,
  JobState,
  ModelServiceDefinition,
  Precision,
  ServerServiceDefinition,
  type JobEvent,
} from '@relora/sdk/contract';
import { createChannel, createClient } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { modelSettings } from '../cuda/modelServer.js';
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

const uuid = 'GPU-72656c6f-7261-2d6d-6f64-656c2d303000';

/** A warm start and two cycles, small enough for a card that is emulated thread by thread. */
const spec = (changes: object = {}) =>
  JobSpec.fromJSON({
    ...tinySpec(24),
    model: {
      config: { hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2 },
    },
    warm_start: { step_count: 2, warmup_step_count: 1 },
    adapter: { rank: 4, cycle_step_count: 8, restart_warmup_step_count: 1 },
    batch: { sequence_length: 16, sequence_count: 2, micro_batch_sequence_count: 2 },
    evaluation: { every_step_count: 7, token_count: 64, final_token_count: 64 },
    checkpoint: { every_step_count: 4 },
    ...changes,
  });

async function create({ training }: Clients, changes: object = {}): Promise<string> {
  return (await training.createJob({ spec: spec(changes) })).job!.name;
}

function servicesOf({ grpcAddress }: ServerProcess) {
  const channel = createChannel(grpcAddress);
  onTestFinished(() => channel.close());
  return {
    server: createClient(ServerServiceDefinition, channel),
    model: createClient(ModelServiceDefinition, channel),
    artifacts: createClient(ArtifactServiceDefinition, channel),
  };
}

test(
  'a job on a card is merged, killed with its server, resumed to the same weights, paused, exported and writes text',
  async () => {
    const folder = temporaryFolder();
    const settings = modelSettings();
    const first = await startServerProcess(folder, settings);
    const before = clientsOf(first.grpcAddress);
    const { devices } = await servicesOf(first).server.getServerInfo({});
    expect(devices[0]).toMatchObject({
      ...{ backend: 'cuda', isDefault: true, model: 'Model of a card', instructionSet: 'sm_90a' },
      ...{ uuid, computeCapability: '9.0', memoryBytes: 2 ** 33, slotCount: 1 },
    });
    await uploadTinyText(before);
    const undisturbed = await create(before);
    const whole: JobEvent[] = [];
    await watchUntil(before, undisturbed, whole, () => false);
    expect(statesOf(whole).at(-1)).toBe(JobState.SUCCEEDED);
    expect(whole.filter(({ restart }) => restart !== undefined)).toHaveLength(2);
    const expected = await weightsSha256(before, undisturbed);
    const { execution } = (await before.training.getJob({ name: undisturbed })).job!;
    expect(execution).toMatchObject({
      ...{ backend: 'cuda', instructionSet: 'sm_90a', precision: Precision.BFLOAT16 },
      ...{ deviceModel: 'Model of a card', cardUuid: uuid },
    });
    expect(
      Object.fromEntries(execution!.libraries.map(({ name, version }) => [name, version])),
    ).toMatchObject({
      ...{ driver: '13.0', nvrtc: '13.0', multiprocessors: '4' },
      kernels: expect.stringMatching(/^[0-9a-f]{16}$/) as string,
    });

    const name = await create(before);
    const events: JobEvent[] = [];
    await watchUntil(before, name, events, ({ checkpoint }) => (checkpoint?.step ?? 0) >= 4);
    first.process.kill('SIGKILL');
    await first.exited;

    const second = await startServerProcess(folder, settings);
    const after = clientsOf(second.grpcAddress);
    await watchUntil(after, name, events, ({ step, attempt }) => step !== undefined && attempt === 2);
    await after.training.pauseJob({ name });
    await watchUntil(after, name, events, ({ state }) => state?.to === JobState.PAUSED);
    await after.training.resumeJob({ name });
    await watchUntil(after, name, events, () => false);
    expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
    expect(events.flatMap(({ warning }) => warning?.reason ?? [])).not.toContain('RESUMED_ON_OTHER_BACKEND');
    expect(await weightsSha256(after, name)).toBe(expected);

    const { model, artifacts } = servicesOf(second);
    const { artifact } = await artifacts.exportWeights({ job: name, format: ExportFormat.GGUF });
    const stateOf = async () => (await artifacts.getArtifact({ name: artifact!.name })).artifact!.state;
    await expect.poll(stateOf, { interval: 50, timeout: patienceMs }).toBe(ArtifactState.READY);
    let tokenCount = 0;
    for await (const piece of model.generateText({ model: name, prompt: 'Line', tokenCountMax: 4 }))
      ({ tokenCount } = piece);
    expect(tokenCount).toBeGreaterThan(0);
  },
  patienceMs,
);
