import { readFileSync, realpathSync } from 'node:fs';
import {
  ArtifactServiceDefinition,
  ArtifactState,
  ExportFormat,
  JobSpec,
  JobState,
  ModelServiceDefinition,
} from '@relora/sdk/contract';
import { createChannel, createClient } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { modelPath } from '../cuda/modelPaths.js';
import { modelSettings } from '../cuda/modelServer.js';
import { patienceMs } from '../patience.mjs';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import { clientsOf, uploadTinyText, watchUntil } from './watchedJob.js';

/** Little more card memory than the smallest job needs. */
const cardBytes = 670 * 2 ** 20;

/** Children of a process, and whether the driver of a card is loaded in them. */
function childrenOf(pid: number): Map<number, boolean> {
  const children = new Map<number, boolean>();
  const listed = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
  for (const child of listed.split(' ').filter(Boolean).map(Number)) {
    try {
      const maps = readFileSync(`/proc/${child}/maps`, 'utf8');
      children.set(child, maps.includes(realpathSync(modelPath)));
    } catch {
      // It ended meanwhile.
    }
  }
  return children;
}

test(
  'text, exports and scores are made on the processors beside a trainer that has its card filled',
  async () => {
    const server = await startServerProcess(temporaryFolder(), {
      ...modelSettings(),
      CUDA_MODEL_MEMORY_BYTES: String(cardBytes),
    });
    const clients = clientsOf(server.grpcAddress);
    const channel = createChannel(server.grpcAddress);
    onTestFinished(() => channel.close());
    const artifacts = createClient(ArtifactServiceDefinition, channel);
    const models = createClient(ModelServiceDefinition, channel);
    await uploadTinyText(clients);
    const spec = JobSpec.fromJSON({
      ...tinySpec(8000),
      model: {
        config: { hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2 },
      },
      warm_start: { step_count: 2, warmup_step_count: 1 },
      adapter: { rank: 4, cycle_step_count: 1000, restart_warmup_step_count: 1 },
      batch: { sequence_length: 16, sequence_count: 2, micro_batch_sequence_count: 2 },
      evaluation: { every_step_count: 4000, token_count: 64, final_token_count: 64 },
      checkpoint: { every_step_count: 4 },
      end_of_data: 'END_OF_DATA_REPEAT',
    });
    // A second job of this size does not fit.
    const { estimate } = await clients.training.estimateJob({ spec });
    expect(estimate!.cardMemoryBytes).toBeGreaterThan(0.5 * estimate!.cardMemoryLimitBytes);
    const { name } = (await clients.training.createJob({ spec })).job!;
    await watchUntil(clients, name, [], ({ checkpoint }) => (checkpoint?.step ?? 0) >= 8);
    const { execution } = (await clients.training.getJob({ name })).job!;
    expect(execution!.backend).toBe('cuda');
    const before = new Set(childrenOf(server.process.pid!).keys());

    /** For each process that ran during a request: whether it had the driver loaded. */
    const watched = async (ask: () => Promise<unknown>): Promise<boolean[]> => {
      const found = new Map<number, boolean>();
      const timer = setInterval(() => {
        for (const [pid, hasDriver] of childrenOf(server.process.pid!))
          if (!before.has(pid)) found.set(pid, hasDriver || (found.get(pid) ?? false));
      }, 3);
      await ask().finally(() => clearInterval(timer));
      return [...found.values()];
    };
    const on = {
      processors: expect.toSatisfy(
        (found: boolean[]) => found.length > 0 && !found.includes(true),
      ) as boolean[],
    };
    const generated = async () => {
      let text = '';
      for await (const piece of models.generateText({
        model: name,
        prompt: 'Line',
        tokenCountMax: 8,
        seed: 3,
      }))
        text += piece.text;
      return text;
    };
    expect(await watched(generated)).toEqual(on.processors);
    const evaluated = async () =>
      await models.evaluateModel({ model: name, datasets: ['datasets/tiny-text'], tokenCount: 256 });
    expect(await watched(evaluated)).toEqual(on.processors);
    const exported = async () => {
      const { artifact } = await artifacts.exportWeights({ job: name, format: ExportFormat.GGUF });
      const stateOf = async () => (await artifacts.getArtifact({ name: artifact!.name })).artifact!.state;
      await expect.poll(stateOf, { interval: 50, timeout: patienceMs }).toBe(ArtifactState.READY);
    };
    expect(await watched(exported)).toEqual(on.processors);

    // The trainer kept running on its card all the time.
    const { state, attempt } = (await clients.training.getJob({ name })).job!;
    expect({ state, attempt }).toEqual({ state: JobState.RUNNING, attempt: 1 });
    const drivers = [...childrenOf(server.process.pid!)].filter(([pid]) => before.has(pid));
    expect(drivers.some(([, hasDriver]) => hasDriver)).toBe(true);
    await clients.training.cancelJob({ name });
    await watchUntil(clients, name, [], () => false);
  },
  patienceMs,
);
