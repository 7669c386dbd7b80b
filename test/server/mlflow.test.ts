import type { IncomingMessage } from 'node:http';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { JobSpec } from '@relora/sdk/contract';
import { pino } from 'pino';
import { expect, it } from 'vitest';
import { Mlflow } from '../../server/dist/trackers/mlflow.js';
import { serve, startMlflow } from './mlflowServer.js';
import {
  allEvents,
  claim,
  execution,
  openParts,
  readyDataset,
  stepEvent,
  submit,
  temporaryFolder,
  type Parts,
} from './parts.js';
import { stepBody } from './stepBody.mjs';

/** A local server that redirects, or gives an empty answer; records its requests. */
async function listen(location?: string): Promise<{ url: URL; asked: IncomingMessage[] }> {
  const asked: IncomingMessage[] = [];
  const url = await serve((request, response) => {
    asked.push(request);
    response
      .writeHead(location === undefined ? 200 : 307, location === undefined ? {} : { location })
      .end('{}');
  });
  return { url, asked };
}

/** A running job without events of its run. */
async function runningJob(parts: Parts) {
  const { id: jobId } = await submit(parts);
  const key = { jobId, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  return { key, job: (await parts.store.find(jobId))! };
}

function trackerOf(url: URL, log = pino({ level: 'silent' })): Mlflow {
  const specOf = () => JobSpec.fromPartial({ stepCount: 20, dataset: 'datasets/text' });
  return new Mlflow({ url, experiment: 'relora', tokenFile: '', specOf, log });
}

const { signal } = new AbortController();

it('MLflow gets many values in calls that it takes', async () => {
  const parts = await openParts();
  await readyDataset(parts);
  const { key, job } = await runningJob(parts);
  // 165 times 6 values and two times 5: with the tag for the last event they are one more than a call may have.
  const withFive = [165, 166].map((step) => stepBody(step, { gradientNorm: Infinity }));
  await parts.attempts.append(key, [
    ...Array.from({ length: 165 }, (_, step) => stepEvent(step)),
    ...withFive.map((body) => ({ timeMs: Date.now(), body })),
  ]);
  const { url, runs } = await startMlflow();
  const mlflow = trackerOf(url);
  await mlflow.write(job, await allEvents(parts, job.id), '', signal);
  expect(runs[0]!.data.metrics).toHaveLength(1000);
  expect(runs[0]!.data.tags).toContainEqual({ key: 'relora.sequence', value: '170' });
});

it('a run of MLflow gets the parameters of its job even if the call that first sent them failed', async () => {
  const parts = await openParts();
  await readyDataset(parts);
  const { job } = await runningJob(parts);
  const { url, runs, failing } = await startMlflow();
  const mlflow = trackerOf(url);
  const events = await allEvents(parts, job.id);
  failing.add('runs/log-batch');
  await expect(mlflow.write(job, events, '', signal)).rejects.toThrow('Out of order');
  await mlflow.write(job, events, '', signal);
  expect(runs).toHaveLength(1);
  expect(runs[0]!.data.params).toContainEqual({ key: 'stepCount', value: '20' });
});

it.each(['deleted', 'deleted for good'])(
  'a run of MLflow that was %s gets no more of its job',
  async (how) => {
    const parts = await openParts();
    await readyDataset(parts);
    const { key, job } = await runningJob(parts);
    const { url, runs, calls } = await startMlflow();
    const lines: string[] = [];
    const log = pino({}, { write: (line) => void lines.push(line) });
    const mlflow = trackerOf(url, log);
    await parts.attempts.append(key, [stepEvent(0)]);
    const before = await mlflow.write(job, await allEvents(parts, job.id), '', signal);
    if (how === 'deleted') runs[0]!.info.lifecycle_stage = 'deleted';
    else runs.pop();
    await parts.attempts.append(key, [stepEvent(1)]);
    const events = (await allEvents(parts, job.id)).slice(-1);
    await expect(mlflow.write(job, events, before, signal)).rejects.toThrow(/40[04] to runs.log-batch/);
    const after = await mlflow.write(job, events, before, signal);
    const callCount = calls.length;
    for (const restarted of [mlflow, trackerOf(url, log)])
      expect(await restarted.write(job, events, after, signal)).toBe(after);
    expect(calls).toHaveLength(callCount);
    expect(lines).toEqual([expect.stringContaining('A run of MLflow was deleted')]);
  },
);

it('a redirect of MLflow takes the token and the values of a job nowhere else', async () => {
  const parts = await openParts();
  await readyDataset(parts);
  const job = await submit(parts, { labels: { 'mlflow.experiment': '../../2.0/mlflow/x?y#z' } });
  const elsewhere = await listen();
  const { url, asked } = await listen(elsewhere.url.href);
  const tokenFile = join(temporaryFolder(), 'token');
  writeFileSync(tokenFile, 'planted-token\n');
  const { log } = parts;
  const specOf = () => JobSpec.fromPartial({});
  const mlflow = new Mlflow({ url, experiment: 'relora', tokenFile, specOf, log });
  const events = await allEvents(parts, job.id);
  await expect(mlflow.write(job, events, '', new AbortController().signal)).rejects.toThrow();
  expect(asked.map((request) => [request.headers.authorization, request.url])).toEqual([
    [
      'Bearer planted-token',
      '/api/2.0/mlflow/experiments/get-by-name?experiment_name=..%2F..%2F2.0%2Fmlflow%2Fx%3Fy%23z',
    ],
  ]);
  expect(elsewhere.asked).toEqual([]);
});
