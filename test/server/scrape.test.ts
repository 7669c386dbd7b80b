import { expect, test } from 'vitest';
import { clientsOf, createTinyJob, uploadTinyText, watchUntil, weightsSha256 } from '../e2e/watchedJob.js';
import { metricTable } from '../../server/dist/metrics/metricTable.js';
import { runServer } from './runningServer.js';

/** Value of one sample in the text of a scrape. */
function sample(text: string, series: string): number {
  const line = text.split('\n').find((candidate) => candidate.startsWith(`${series} `));
  if (line === undefined) throw new Error(`No ${series} in\n${text}`);
  return Number(line.slice(series.length + 1));
}

test('a server that has just started serves every metric, with its calls and totals at 0', async () => {
  const { fetch } = await runServer();
  const { text, headers } = await fetch('/metrics');
  expect(headers.get('content-type')).toContain('version=0.0.4');
  for (const { name, type, help } of Object.values(metricTable)) {
    expect(text).toContain(`# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`);
  }
  for (const series of [
    'relora_steps_total',
    'relora_trainer_crashes_total',
    'relora_jobs_finished_total{outcome="failed"}',
    'relora_rpc_started_total{service="relora.v1.TrainingService",method="CreateJob"}',
    'relora_rpc_handled_total{service="relora.v1.TrainingService",method="CreateJob",code="OK"}',
    'relora_rpc_handled_total{service="relora.v1.TrainingService",method="CreateJob",code="INTERNAL"}',
    'relora_rpc_seconds_count{service="relora.v1.TrainingService",method="CreateJob"}',
    'relora_watchers',
  ]) {
    expect(sample(text, series), series).toBe(0);
  }
  for (const series of ['process_cpu_seconds_total', 'process_open_fds', 'nodejs_heap_size_used_bytes'])
    expect(sample(text, series), series).toBeGreaterThan(0);
  expect(sample(text, 'relora_slots')).toBe(1);
  expect(sample(text, 'relora_queue_jobs_max')).toBe(1000);
  expect(sample(text, 'relora_store_statement_seconds_count')).toBeGreaterThan(0);
});

test('a job that ran is shown by its gauges, by the totals and by the calls that were made', async () => {
  const { server, fetch } = await runServer();
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  const name = await createTinyJob(clients, 30);
  await watchUntil(clients, name, [], () => false);
  await weightsSha256(clients, name);
  await clients.training.getJob({ name: 'jobs/none-such' }).catch(() => {});

  const job = `{job_id="${name.replace('jobs/', '')}"}`;
  const { text } = await fetch('/metrics');
  const steps = sample(text, `relora_job_steps${job}`);
  const tokens = steps * 4 * 32;
  expect(steps).toBeGreaterThanOrEqual(30);
  expect(sample(text, `relora_job_step${job}`)).toBe(steps);
  expect(sample(text, 'relora_steps_total')).toBe(steps);
  expect(sample(text, `relora_job_trained_tokens${job}`)).toBe(tokens);
  expect(sample(text, 'relora_tokens_total')).toBe(tokens);
  expect(sample(text, `relora_job_loss${job}`)).toBeLessThan(6);
  expect(sample(text, `relora_job_evaluation_loss${job}`)).toBeLessThan(6);
  const began = sample(text, `relora_job_attempt_timestamp_seconds${job}`);
  expect(began).toBeGreaterThan(sample(text, 'relora_start_timestamp_seconds'));
  expect(sample(text, `relora_job_checkpoint_timestamp_seconds${job}`)).toBeGreaterThan(began);
  expect(sample(text, `relora_job_resident_bytes${job}`)).toBeGreaterThan(1e7);
  expect(sample(text, `relora_job_merge_delta_norm${job}`)).toBeGreaterThan(0);
  expect(sample(text, `relora_job_checkpoint_bytes${job}`)).toBeGreaterThan(1000);
  expect(sample(text, 'relora_restarts_total')).toBe(sample(text, `relora_job_restarts${job}`));
  expect(sample(text, 'relora_jobs{state="succeeded"}')).toBe(1);
  expect(sample(text, 'relora_queue_wait_seconds_count')).toBe(1);
  expect(sample(text, 'relora_artifact_sent_bytes_total')).toBeGreaterThan(1000);
  expect(sample(text, 'relora_dataset_received_bytes_total')).toBeGreaterThan(10_000);
  const calls = 'relora_rpc_handled_total{service="relora.v1.TrainingService"';
  expect(sample(text, `${calls},method="WatchJob",code="OK"}`)).toBe(1);
  expect(sample(text, `${calls},method="GetJob",code="NOT_FOUND"}`)).toBe(1);
});

test('watches are counted while they are open', async () => {
  const { server, training, fetch } = await runServer({ RELORA_HEARTBEAT_SECONDS: '0.1' });
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  const name = await createTinyJob(clients, 100_000);
  for await (const { event } of training.watchJob({ name })) {
    if (event?.step === undefined) continue;
    expect(sample((await fetch('/metrics')).text, 'relora_watchers')).toBe(1);
    break;
  }
  const watchers = async () => sample((await fetch('/metrics')).text, 'relora_watchers');
  await expect.poll(watchers).toBe(0);
  await training.cancelJob({ name });
});

test('without room on the disk a server is alive but not ready, and says why', async () => {
  const { fetch } = await runServer({ RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) });
  expect((await fetch('/healthz')).status).toBe(200);
  const { status, text } = await fetch('/readyz');
  expect(status).toBe(503);
  expect(text).toContain('disk is almost full');
});
