import { execFile, execFileSync, spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { JobSpec, type JobEvent } from '@relora/sdk/contract';
import { describe, expect, it, onTestFinished } from 'vitest';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import { clientsOf, uploadTinyText, watchUntil, type Clients } from './watchedJob.js';

const python = process.env.RELORA_TEST_PYTHON ?? 'python3';
/** In the main phase, after a warm start of ten steps. */
const mainSteps = 60;
const stepCount = mainSteps + 10;

/** Whether Python has a module; if not, that is reported and its tests count as skipped. */
function has(module: string): boolean {
  try {
    execFileSync(python, [
      '-c',
      `import importlib.util as u, sys; sys.exit(u.find_spec('${module}') is None)`,
    ]);
    return true;
  } catch {
    console.warn(`Skipped: the tests with ${module} in ${python} (RELORA_TEST_PYTHON)`);
    return false;
  }
}

async function python3(program: string, ...args: string[]): Promise<unknown> {
  const { stdout } = await promisify(execFile)(python, ['-c', program, ...args], { maxBuffer: 1 << 26 });
  return JSON.parse(stdout.split('\n').at(-2)!);
}

type Curve = [step: number, value: number][];

/** A job's curves from its journal; for repeated steps the last values. All curves by time have the same values. */
function curvesOf(events: readonly JobEvent[]): Record<string, Curve> {
  const losses = new Map<number, number>();
  const rates = new Map<number, number>();
  const heldOut = new Map<number, number>();
  for (const { step, evaluation } of events) {
    if (step !== undefined) losses.set(step.step, step.loss);
    if (step !== undefined) rates.set(step.step, step.learningRate);
    if (evaluation !== undefined) heldOut.set(evaluation.step, evaluation.loss);
  }
  const inOrder = (map: Map<number, number>): Curve => [...map].sort(([a], [b]) => a - b);
  return { loss: inOrder(losses), learning_rate: inOrder(rates), held_out_loss: inOrder(heldOut) };
}

/** TensorBoard keeps 32 bits of a value. */
const inSingle = (curve: Curve): Curve => curve.map(([step, value]) => [step, Math.fround(value)]);

/** A job whose trainer is killed once and whose server is killed twice. */
async function disturbedJob(settings: Record<string, string>): Promise<{
  name: string;
  events: JobEvent[];
  clients: Clients;
}> {
  const folder = temporaryFolder();
  let server = await startServerProcess(folder, settings);
  let clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  const { job } = await clients.training.createJob({
    spec: JobSpec.fromJSON(tinySpec(mainSteps)),
    labels: { 'mlflow.experiment': 'tiny' },
  });
  const name = job!.name;
  const events: JobEvent[] = [];
  for (const step of [15, 35]) {
    await watchUntil(clients, name, events, (event) => event.step?.step === step);
    server.process.kill('SIGKILL');
    await server.exited;
    server = await startServerProcess(folder, settings);
    clients = clientsOf(server.grpcAddress);
  }
  await watchUntil(clients, name, events, () => false);
  return { name, events, clients };
}

describe.skipIf(!has('tensorboard'))('TensorBoard', () => {
  it('reads every value of a job once, also when the server was killed', async () => {
    const folder = temporaryFolder();
    const { name, events } = await disturbedJob({ RELORA_TENSORBOARD_FOLDER: folder });
    const runFolder = join(folder, name.replace('jobs/', ''));
    const read = async () =>
      (await python3(
        `import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
a = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0})
a.Reload()
print(json.dumps({t: [[e.step, e.value] for e in a.Scalars(t)] for t in a.Tags()['scalars']}))`,
        runFolder,
      )) as Record<string, Curve>;
    const expected = curvesOf(events);
    expect(expected.loss!.length).toBe(stepCount);
    // Written at most a second after the last event.
    await expect
      .poll(async () => (await read()).loss?.length, { interval: 1000, timeout: 60_000 })
      .toBe(stepCount);
    const curves = await read();
    for (const [key, curve] of Object.entries(expected)) expect(curves[key], key).toEqual(inSingle(curve));
    expect(Object.keys(curves)).toEqual(expect.arrayContaining(['effective_rank', 'tokens_per_second']));
    expect(readdirSync(runFolder).length).toBe(1);
  });
});

/** Starts a real MLflow on a free port, with its own store. */
async function startMlflow(): Promise<string> {
  const folder = temporaryFolder();
  const probe = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => probe.once('listening', resolve));
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  const child = spawn(
    python,
    [
      ...['-m', 'mlflow', 'server', '--host', '127.0.0.1', '--port', String(port), '--workers', '1'],
      ...['--backend-store-uri', `sqlite:///${folder}/mlflow.db`, '--artifacts-destination', folder],
    ],
    { stdio: 'ignore', detached: true, cwd: folder },
  );
  onTestFinished(() => {
    process.kill(-child.pid!, 'SIGKILL');
  });
  const url = `http://127.0.0.1:${port}`;
  const isUp = async () =>
    await fetch(`${url}/health`).then(
      (answer) => answer.ok,
      () => false,
    );
  await expect.poll(isUp, { interval: 500, timeout: 240_000 }).toBe(true);
  return url;
}

describe.skipIf(!has('mlflow'))('MLflow', () => {
  it('has every value of a job once, also when the server was killed', async () => {
    const url = await startMlflow();
    const { name, events } = await disturbedJob({ RELORA_MLFLOW_URL: url });
    const call = async (path: string, body?: object): Promise<Record<string, unknown>> => {
      const answer = await fetch(`${url}/api/2.0/mlflow/${path}`, {
        ...(body === undefined
          ? {}
          : { method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
      });
      expect(answer.status, path).toBe(200);
      return (await answer.json()) as Record<string, unknown>;
    };
    interface Run {
      info: { run_id: string; status: string; run_name: string };
      data: { params: { key: string; value: string }[]; tags: { key: string; value: string }[] };
    }
    const { experiment } = (await call('experiments/get-by-name?experiment_name=tiny')) as {
      experiment: { experiment_id: string };
    };
    const runs = async () =>
      ((await call('runs/search', { experiment_ids: [experiment.experiment_id] })) as { runs: Run[] }).runs;
    await expect
      .poll(async () => (await runs()).map(({ info }) => info.status), { interval: 500, timeout: 60_000 })
      .toEqual(['FINISHED']);
    const [run] = await runs();
    expect(run!.info.run_name).toBe(name.replace('jobs/', ''));
    expect(run!.data.params).toEqual(expect.arrayContaining([{ key: 'adapter.rank', value: '4' }]));
    for (const [key, curve] of Object.entries(curvesOf(events))) {
      const history = (await call(
        `metrics/get-history?run_id=${run!.info.run_id}&metric_key=${key}&max_results=1000`,
      )) as { metrics: { step: number; value: number }[] };
      const logged = history.metrics.map(({ step, value }): [number, number] => [Number(step), value]);
      expect(
        logged.sort(([a], [b]) => a - b),
        key,
      ).toEqual(curve);
    }
  });
});
