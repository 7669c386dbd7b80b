import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startLocalServer } from '../../../examples/demo/localServer.mjs';

export const name = 'service';
export const title = 'A job on the card over gRPC: warm start, two restarts, merged weights';

const root = fileURLToPath(new URL('../../../', import.meta.url));

export async function* run({ isModel, folder, libraryFolder, secondsLeft }) {
  if (isModel)
    return yield { what: title, outcome: 'not run', figures: 'test/e2e/cardServer.test.ts has it' };
  const patience = Math.min(60, secondsLeft());
  if (patience < 10) return yield { what: title, outcome: 'not run', figures: 'the time is over' };
  const { ReloraClient } = await import('@relora/sdk');
  const settings = {
    RELORA_DEVICE: 'cuda',
    RELORA_KERNEL_CACHE_FOLDER: join(root, '.relora', 'gpu-kernels'),
    ...(libraryFolder !== null && { RELORA_CUDA_FOLDER: libraryFolder }),
  };
  const signal = AbortSignal.timeout(1000 * patience);
  const server = await startLocalServer(join(folder, 'server'), join(folder, 'server.log'), settings);
  const client = new ReloraClient({ address: server.address });
  try {
    const dataset = await client.uploadDataset({
      datasetId: 'license',
      files: [{ content: readFileSync(join(root, 'LICENSE'), 'utf8') }],
      spec: { tokenizer: { bytes: {} }, heldOutShare: 0.1 },
      signal,
    });
    const job = await client.createJob(jobOf(dataset.name), { signal });
    const counts = { steps: 0, restarts: 0 };
    const ended = await client.waitForJob(job.name, {
      signal,
      onEvent: ({ kind }) => {
        if (kind === 'step') counts.steps++;
        if (kind === 'restart') counts.restarts++;
      },
    });
    const { backend, deviceModel } = ended.execution ?? {};
    const isWell = backend === 'cuda' && counts.restarts === 2;
    yield {
      what: title,
      outcome: isWell ? 'ok' : 'FAULT',
      figures: `${backend} ${deviceModel}, ${counts.steps} steps, ${counts.restarts} restarts, ${ended.state}`,
    };
  } catch (error) {
    const outcome = signal.aborted ? 'not run' : 'FAULT';
    yield {
      what: title,
      outcome,
      figures: signal.aborted ? `not done in ${patience.toFixed(0)} s` : String(error),
    };
  } finally {
    client.close();
    await server.stop();
  }
}

function jobOf(dataset) {
  return {
    model: { config: { hiddenSize: 64, intermediateSize: 176, numHiddenLayers: 2, numAttentionHeads: 4 } },
    dataset,
    warmStart: { stepCount: 10, warmupStepCount: 2 },
    adapter: { rank: 8, cycleStepCount: 10, restartWarmupStepCount: 2 },
    stepCount: 30,
    batch: { sequenceLength: 64, sequenceCount: 8 },
    checkpoint: { everyStepCount: 20 },
    seed: 7,
    device: 'cuda',
  };
}
