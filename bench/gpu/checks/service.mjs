import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startLocalServer } from '../../../examples/demo/localServer.mjs';
import { serverSettings } from '../card.mjs';

export const name = 'service';
export const title = 'A job on the card over gRPC: warm start, two restarts, merged weights';
export const seconds = 10;

const root = fileURLToPath(new URL('../../../', import.meta.url));

export async function* run(context) {
  const { isModel, folder, secondsLeft } = context;
  const patience = isModel ? secondsLeft() : Math.min(60, secondsLeft());
  if (patience < 10) return yield { what: title, outcome: 'not run', figures: 'the time is over' };
  const { ReloraClient } = await import('@relora/sdk');
  const settings = { RELORA_DEVICE: 'cuda', ...serverSettings(context) };
  const signal = AbortSignal.timeout(Math.floor(1000 * patience));
  const server = await startLocalServer(join(folder, 'server'), join(folder, 'server.log'), settings);
  const client = new ReloraClient({ address: server.address });
  try {
    const dataset = await client.uploadDataset({
      datasetId: 'license',
      files: [{ content: readFileSync(join(root, 'LICENSE'), 'utf8') }],
      spec: { tokenizer: { bytes: {} }, heldOutShare: 0.1 },
      signal,
    });
    const { name } = await client.createJob(
      { ...(isModel ? tinyJob : job), dataset: dataset.name },
      { signal },
    );
    const counts = { steps: 0, restarts: 0 };
    const ended = await client.waitForJob(name, {
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

const job = {
  model: { config: { hiddenSize: 64, intermediateSize: 176, numHiddenLayers: 2, numAttentionHeads: 4 } },
  warmStart: { stepCount: 10, warmupStepCount: 2 },
  adapter: { rank: 8, cycleStepCount: 10, restartWarmupStepCount: 2 },
  stepCount: 30,
  batch: { sequenceLength: 64, sequenceCount: 8 },
  checkpoint: { everyStepCount: 20 },
  seed: 7,
  device: 'cuda',
};

/** For a card that is emulated thread by thread. */
const tinyJob = {
  ...job,
  model: { config: { hiddenSize: 16, intermediateSize: 32, numHiddenLayers: 1, numAttentionHeads: 2 } },
  warmStart: { stepCount: 2, warmupStepCount: 1 },
  adapter: { rank: 4, cycleStepCount: 3, restartWarmupStepCount: 1 },
  stepCount: 9,
  batch: { sequenceLength: 16, sequenceCount: 2 },
  evaluation: { tokenCount: 64, finalTokenCount: 64 },
};
