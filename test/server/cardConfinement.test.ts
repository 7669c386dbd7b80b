import { readFileSync, readlinkSync } from 'node:fs';
import { JobState, ReloraClient, parseJobSpec } from '@relora/sdk';
import { describe, expect, it, onTestFinished } from 'vitest';
import { readConfig } from '../../server/dist/config.js';
import { Confinement } from '../../server/dist/trainer/confinement.js';
import { modelSettings } from '../cuda/modelServer.js';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { patienceMs } from '../patience.mjs';

const { means } = new Confinement(readConfig({}));

/** Small enough for a card that is emulated thread by thread. */
const spec = parseJobSpec({
  ...tinySpec(4),
  model: {
    config: { hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2 },
  },
  warm_start: { step_count: 0 },
  adapter: { rank: 4, cycle_step_count: 2, restart_warmup_step_count: 1 },
  batch: { sequence_length: 16, sequence_count: 2, micro_batch_sequence_count: 2 },
  evaluation: { token_count: 64, final_token_count: 64 },
  device: 'cuda',
});

/** Trains a job on the card; returns how it ended, how its trainer was sandboxed, and what the server reports about it. */
async function trained(settings: Record<string, string>) {
  const folder = temporaryFolder();
  const server = await startServerProcess(folder, { ...modelSettings(), ...settings });
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  const { sandbox } = await client.serverInfo();
  await client.uploadDataset({
    datasetId: 'tiny-text',
    files: [{ content: tinyText(), fileName: 'tiny.txt' }],
    spec: { heldOutShare: 0.1 },
  });
  const { name } = await client.createJob(spec);
  let held: string | undefined;
  for await (const event of client.watch(name)) {
    if (event.kind === 'step') held ??= filterOf(trainerIn(server.process.pid!, name));
    if (event.kind === 'state' && event.state.to === JobState.PAUSED) break;
  }
  const job = await client.getJob(name);
  return { sandbox, job, held, logged: server.logged };
}

/** The child process that works in a job's folder. */
function trainerIn(server: number, name: string): number {
  const children = readFileSync(`/proc/${server}/task/${server}/children`, 'utf8').split(' ').filter(Boolean);
  return Number(children.find((pid) => readlinkSync(`/proc/${pid}/cwd`).endsWith(name))!);
}

/** `2` for a process with a seccomp filter, `0` for one without. */
const filterOf = (pid: number): string =>
  /^Seccomp:\s+(\d)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]!;

describe.skipIf(means === null)('a trainer on a card', () => {
  it.each(['auto', 'required'])(
    'is confined, and the card works: %s',
    async (sandbox) => {
      const result = await trained({ RELORA_SANDBOX: sandbox });
      expect(result.job.state, result.job.stateReason).toBe(JobState.SUCCEEDED);
      expect(result.job.execution?.backend).toBe('cuda');
      expect(result.held).toBe('2');
      expect(result.sandbox).toBe(means);
    },
    patienceMs,
  );

  it(
    'is not by default where its driver does not work so, which the server says',
    async () => {
      const result = await trained({ CUDA_MODEL_NEEDS_SOCKET: '1' });
      expect(result.job.state).toBe(JobState.SUCCEEDED);
      expect(result.held).toBe('0');
      expect(result.sandbox).toMatch(/^Landlock \d+, seccomp; not on a card: .*CUDA_ERROR_NO_DEVICE/);
      const warning = result.logged.find(({ msg }) =>
        /^Trainers on a card are not confined/.test(String(msg)),
      );
      expect(warning?.problem).toMatch(/CUDA_ERROR_NO_DEVICE/);
    },
    patienceMs,
  );

  it(
    'is all the same where it is required, and then says why it cannot train',
    async () => {
      const result = await trained({ CUDA_MODEL_NEEDS_SOCKET: '1', RELORA_SANDBOX: 'required' });
      expect(result.job.state).toBe(JobState.PAUSED);
      expect(result.job.stateReason).toMatch(/\(DEVICE_NOT_FOUND\)/);
    },
    patienceMs,
  );
});
