import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { dynamicClient, reflect } from './reflectedClient.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder } from './tinyJob.js';

const page = readFileSync(new URL('../../docs/api.md', import.meta.url), 'utf8');
const blocks = [...page.matchAll(/^```sh\n(.*?)^```$/gms)].map((match) => match[1]!);

/** Writes down what it was called with, so that the shell does all quoting and pipes as it would for the real one. */
const recorder = `
set -eu
calls=0
grpcurl() {
  calls=$((calls + 1))
  mkdir -p "calls/$calls"
  printf '%s\\0' "$@" > "calls/$calls/arguments"
  case " $* " in *" -d @ "*) cat > "calls/$calls/input" ;; esac
}
`;

interface RecordedCall {
  /** Empty for a list of services. */
  method: string;
  messages: object[];
}

/** Runs one block in the shell of a folder and reads the calls that it makes. */
function callsOf(block: string, folder: string): RecordedCall[] {
  rmSync(join(folder, 'calls'), { recursive: true, force: true });
  mkdirSync(join(folder, 'calls'));
  // A call at the end of a pipe runs in a shell of its own, which counts for itself: one such call a block is enough.
  execFileSync('bash', ['-c', recorder + block], { cwd: folder });
  const calls: RecordedCall[] = [];
  for (let number = 1; existsSync(join(folder, 'calls', String(number))); number++) {
    const read = (name: string) => readFileSync(join(folder, 'calls', String(number), name), 'utf8');
    const [plain, ...rest] = read('arguments').split('\0').slice(0, -1);
    expect(plain).toBe('-plaintext');
    const data = rest[0] === '-d' ? rest.splice(0, 2)[1]! : '';
    const [address, method] = rest;
    expect(address).toBe('localhost:50051');
    const text = data === '@' ? read('input') : data;
    calls.push({
      method: method === 'list' ? '' : method!,
      messages: text === '' ? [{}] : parseMessages(text),
    });
  }
  return calls;
}

/** JSON texts one after the other, as grpcurl takes them. */
function parseMessages(text: string): object[] {
  // Made of descriptors, protobufjs knows maps only as the lists of entries that they are on the wire.
  const entries = (key: string, value: unknown) =>
    key === 'labels'
      ? Object.entries(value as object).map(([key, value]) => ({ key, value: value as unknown }))
      : value;
  return JSON.parse(`[${text.replace(/\}\s*\n\s*\{/g, '},{')}]`, entries) as object[];
}

test('every command of docs/api.md does what the page says, one after the other', async () => {
  const server = await startServerProcess(temporaryFolder(), { RELORA_THREADS: '2' });
  const { descriptorSet } = await reflect(server.grpcAddress, 'v1');
  const folder = temporaryFolder();
  // The model that the page uploads.
  for (const name of ['config.json', 'model.safetensors'])
    copyFileSync(
      new URL(`../fixtures/transformers/qwen2-bfloat16/${name}`, import.meta.url),
      join(folder, name),
    );
  const answers = new Map<string, Record<string, unknown>[]>();
  const errors: string[] = [];

  const perform = async ({ method, messages }: RecordedCall): Promise<Record<string, unknown>[]> => {
    const [service, name] = method.split('/') as [string, string];
    const client = dynamicClient(descriptorSet, service, server.grpcAddress);
    try {
      if (name === 'UploadDataset' || name === 'UploadWeights') {
        return await new Promise((resolve, reject) => {
          const call = client[name]!((error: Error | null, answer: Record<string, unknown>) =>
            error ? reject(error) : resolve([answer]),
          );
          for (const message of messages) call.write(message);
          call.end();
        });
      }
      if (['WatchJob', 'DownloadArtifact', 'GenerateText'].includes(name)) {
        const received: Record<string, unknown>[] = [];
        for await (const message of client[name]!(messages[0]))
          received.push(message as Record<string, unknown>);
        return received;
      }
      return await new Promise((resolve, reject) => {
        client[name]!(messages[0], (error: Error | null, answer: Record<string, unknown>) =>
          error ? reject(error) : resolve([answer]),
        );
      });
    } finally {
      client.close();
    }
  };

  for (const block of blocks) {
    const isMeantToFail = block.includes('# ERROR:');
    for (const call of callsOf(block, folder)) {
      if (call.method === '') continue;
      const name = call.method.split('/')[1]!;
      const result = await perform(call).catch((error: Error) => {
        if (!isMeantToFail) throw new Error(`${name} of docs/api.md failed`, { cause: error });
        errors.push(error.message);
        return [];
      });
      answers.set(name, [...(answers.get(name) ?? []), ...result]);
      if (name === 'UploadDataset') {
        const ready = {
          method: 'relora.v1.DatasetService/GetDataset',
          messages: [{ name: 'datasets/tales' }],
        };
        const state = async () => ((await perform(ready))[0]!.dataset as { state: string }).state;
        await expect.poll(state, { interval: 50 }).toBe('DATASET_STATE_READY');
      }
    }
  }

  const last = (name: string) => answers.get(name)!.at(-1) as Record<string, Record<string, unknown>>;
  expect((last('PreviewDataset') as unknown as { tokens: unknown[] }).tokens).toHaveLength(16);
  expect(last('UploadWeights').weights).toMatchObject({ state: 'WEIGHTS_STATE_READY' });
  expect((last('EstimateJob').plan as { restart_steps: number[] }).restart_steps).toEqual([2000, 3000, 4000]);
  expect(last('WatchJob').event).toMatchObject({ final: true, state: { to: 'JOB_STATE_SUCCEEDED' } });
  const events = answers.get('WatchJob')!.map(({ event }) => (event as { kind: string }).kind);
  for (const kind of ['state', 'step', 'evaluation', 'restart', 'checkpoint', 'artifact'])
    expect(events).toContain(kind);
  expect((last('ListJobs') as unknown as { jobs: unknown[] }).jobs).toHaveLength(1);
  expect(JSON.parse(String(last('DownloadArtifact').data))).toMatchObject({ model_type: 'llama' });
  expect(last('GenerateText').finish_reason).not.toBe('FINISH_REASON_UNSPECIFIED');
  expect(last('PauseJob').job!.state).toBe('JOB_STATE_PAUSED');
  expect(last('ResumeJob').job!.state).toMatch(/QUEUED|STARTING|RUNNING/);
  expect(last('CancelJob').job!.state).toBe('JOB_STATE_CANCELLED');
  expect((last('GetMetricHistory') as unknown as { series: unknown[] }).series).toHaveLength(2);
  expect((last('CompareJobs') as unknown as { jobs: unknown[] }).jobs).toHaveLength(2);
  expect(errors).toHaveLength(1);
  expect(errors[0]).toContain(
    'spec.dataset: expected datasets/{dataset}, got ""; spec.model.preset: expected one of demo, llama-9m',
  );
});
