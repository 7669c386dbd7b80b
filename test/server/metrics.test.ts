import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Metadata } from '@grpc/grpc-js';
import { TrainingServiceDefinition } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { nobody } from '../../server/dist/access/principal.js';
import { JobMetrics } from '../../server/dist/metrics/jobMetrics.js';
import { createMetrics, type Metrics } from '../../server/dist/metrics/metrics.js';
import { metricsOfTenant } from '../../server/dist/metrics/ofTenant.js';
import { metricTable } from '../../server/dist/metrics/metricTable.js';
import { ServiceError } from '../../server/dist/errors.js';
import { rpcMetricsMiddleware } from '../../server/dist/grpc/rpcMetrics.js';
import { ServerMetrics } from '../../server/dist/metrics/serverMetrics.js';
import { openApi } from './apiServer.js';
import {
  allEvents,
  claim,
  jobWhen,
  onProcessors,
  openParts,
  readyDataset,
  runSpec,
  submit,
  type Parts,
} from './parts.js';
import { freshDatabase, hasPostgres } from './postgres.js';
import { rawCall, rawClient } from './rawCalls.js';

/** The value of a sample, by its name and labels as written; undefined if there is none. */
function sample(text: string, series: string): number | undefined {
  const line = text.split('\n').find((candidate) => candidate.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
}

function measured(parts: Parts): { metrics: Metrics; jobMetrics: JobMetrics } {
  const metrics = createMetrics();
  const jobMetrics = new JobMetrics(metrics);
  jobMetrics.follow(parts.journal, parts.supervisor);
  return { metrics, jobMetrics };
}

async function runOneJob(): Promise<{
  parts: Parts;
  metrics: Metrics;
  jobMetrics: JobMetrics;
  jobId: string;
}> {
  const parts = await openParts();
  const { metrics, jobMetrics } = measured(parts);
  await readyDataset(parts);
  await parts.supervisor.start();
  const { id } = await submit(parts);
  await jobWhen(parts, id, ({ state }) => state === 'succeeded');
  return { parts, metrics, jobMetrics, jobId: id };
}

describe('a scrape', () => {
  it('has help and type of every metric of the table, and nothing else but those of process and runtime', async () => {
    const text = await createMetrics().registry.metrics();
    const isOurs = ([name]: (string | undefined)[]) => !/^(process|nodejs)_/.test(name!);
    const all = [...text.matchAll(/^# HELP (\S+) (.+)$/gm)].map(([, name, help]) => [name, help]);
    const helps = all.filter(isOurs);
    const types = [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)]
      .map(([, name, type]) => [name, type])
      .filter(isOurs);
    const entries = Object.values(metricTable);
    expect(all.map(([name]) => name)).toEqual(
      expect.arrayContaining(['process_resident_memory_bytes', 'nodejs_eventloop_lag_seconds']),
    );
    expect(helps).toEqual(entries.map(({ name, help }) => [name, help]));
    expect(types).toEqual(entries.map(({ name, type }) => [name, type]));
  });

  it('counts from 0 before anything has happened, so that a rate sees the first event', async () => {
    const metrics = createMetrics();
    new JobMetrics(metrics);
    const text = await metrics.registry.metrics();
    for (const name of [
      'relora_steps_total',
      'relora_restarts_total',
      'relora_trainer_crashes_total',
      'relora_jobs_finished_total{outcome="failed"}',
    ]) {
      expect(sample(text, name), name).toBe(0);
    }
  });

  it('costs the store nothing when the one before is less than a second old', async () => {
    const parts = await openParts();
    const { metrics, jobMetrics } = measured(parts);
    let statements = 0;
    const counted = {
      countByState: async () => {
        statements++;
        return await parts.store.countByState();
      },
    };
    const serverMetrics = new ServerMetrics({
      metrics,
      jobMetrics,
      store: counted as unknown as Parts['store'],
      webhooks: { pendingCount: async () => 0 },
      supervisor: parts.supervisor,
      config: parts.config,
      version: '1.2.3',
      startTimeMs: 1000,
    });
    const texts = await Promise.all([serverMetrics.render(), serverMetrics.render(), serverMetrics.render()]);
    serverMetrics.stop();
    expect(statements).toBe(1);
    expect(new Set(texts).size).toBe(1);
    expect(sample(texts[0]!, 'relora_slots')).toBe(1);
    expect(sample(texts[0]!, 'relora_jobs{state="queued"}')).toBe(0);
    expect(sample(texts[0]!, 'relora_start_timestamp_seconds')).toBe(1);
    expect(sample(texts[0]!, 'relora_disk_free_bytes')).toBeGreaterThan(0);
    expect(texts[0]).toMatch(/^relora_build_info\{version="1\.2\.3",node_version="[\d.]+"\} 1$/m);
  });
});

describe('a job', () => {
  it('is shown by metrics as its journal has it', async () => {
    const { parts, metrics, jobId } = await runOneJob();
    const events = await allEvents(parts, jobId);
    const of = (kind: string) => events.filter(({ body }) => body.kind === kind);
    const text = await metrics.registry.metrics();
    expect(sample(text, 'relora_journal_events_total')).toBe(events.length);
    expect(sample(text, 'relora_steps_total')).toBe(of('step').length);
    expect(of('step').length).toBeGreaterThan(0);
    expect(sample(text, 'relora_checkpoints_total')).toBe(of('checkpoint').length);
    expect(sample(text, 'relora_jobs_created_total')).toBe(1);
    expect(sample(text, 'relora_attempts_total')).toBe(1);
    expect(sample(text, 'relora_queue_wait_seconds_count')).toBe(1);
    expect(sample(text, 'relora_jobs_finished_total{outcome="succeeded"}')).toBe(1);
    expect(sample(text, 'relora_step_seconds_count')).toBe(of('step').length);
    const last = of('step').at(-1)!.body;
    if (last.kind !== 'step') throw new Error('not a step');
    expect(sample(text, `relora_job_loss{job_id="${jobId}"}`)).toBe(last.loss);
    expect(sample(text, `relora_job_step{job_id="${jobId}"}`)).toBe(last.step + 1);
    expect(sample(text, `relora_job_learning_rate{job_id="${jobId}"}`)).toBe(last.learningRate);
  });

  it('loses its series some minutes after its end, and not before', async () => {
    const { metrics, jobMetrics, jobId } = await runOneJob();
    jobMetrics.forgetOld(Date.now() + 4 * 60_000);
    expect(await metrics.registry.metrics()).toContain(`job_id="${jobId}"`);
    jobMetrics.forgetOld(Date.now() + 6 * 60_000);
    expect(await metrics.registry.metrics()).not.toContain('job_id=');
  });

  it('that runs keeps its series however long it takes', async () => {
    const parts = await openParts();
    const { metrics, jobMetrics } = measured(parts);
    const { id } = await submit(parts);
    await parts.queue.claimNext(onProcessors);
    jobMetrics.forgetOld(Date.now() + 86_400_000);
    expect(await metrics.registry.metrics()).toContain(`relora_job_steps{job_id="${id}"} 20`);
  });

  it('that another server took over loses its series once its trainer here is gone', async () => {
    const parts = await openParts();
    const { metrics, jobMetrics } = measured(parts);
    await readyDataset(parts);
    await parts.supervisor.start();
    const { id } = await submit(parts, { spec: runSpec('wait') });
    await jobWhen(parts, id, ({ state }) => state === 'running');
    const gone = new Promise<void>((resolve) => parts.supervisor.onExit(() => resolve()));
    // A later attempt elsewhere: from then on, what the trainer here reports is refused.
    await parts.db.updateTable('jobs').set({ attempt: 2 }).where('id', '=', id).execute();
    writeFileSync(join(parts.dataFolder, 'jobs', id, 'go'), '');
    await gone;
    jobMetrics.forgetOld(Date.now() + 4 * 60_000);
    expect(await metrics.registry.metrics()).toContain(`job_id="${id}"`);
    jobMetrics.forgetOld(Date.now() + 6 * 60_000);
    expect(await metrics.registry.metrics()).not.toContain('job_id=');
  });

  it.skipIf(!hasPostgres)(
    'that another server claimed did not wait here until a later claim of this server',
    async () => {
      const url = await freshDatabase();
      const here = await openParts({}, undefined, undefined, url);
      const there = await openParts({}, undefined, undefined, url);
      const { metrics } = measured(here);
      const { id } = await submit(here);
      const heard = new Promise<void>((resolve) =>
        here.feed.listen((change) => {
          if (change?.topic === 'job' && change.id === id && change.state === 'starting') resolve();
        }),
      );
      const key = { jobId: id, attempt: (await claim(there)).attempt };
      await heard;
      await there.attempts.stopped(key, 'Its server ends');
      await claim(here);
      expect(sample(await metrics.registry.metrics(), 'relora_queue_wait_seconds_count')).toBe(0);
    },
  );

  it('keeps the series few when many short jobs end', async () => {
    const parts = await openParts();
    const { metrics, jobMetrics } = measured(parts);
    for (let count = 0; count < 80; count++) {
      const { id } = await submit(parts);
      await parts.queue.claimNext(onProcessors);
      await parts.attempts.failed({ jobId: id, attempt: 1 }, { reason: 'TRAINER_ERROR', message: 'No' });
    }
    jobMetrics.forgetOld();
    const text = await metrics.registry.metrics();
    expect(text.match(/^relora_job_steps\{/gm)?.length).toBe(64);
    expect(sample(text, 'relora_jobs_finished_total{outcome="failed"}')).toBe(80);
  });
});

describe('calls', () => {
  const method = {
    path: '/relora.v1.TrainingService/GetJob',
    requestStream: false,
    responseStream: false,
  };

  it('are counted by service, method and final code', async () => {
    const metrics = createMetrics();
    const middleware = rpcMetricsMiddleware(metrics, [TrainingServiceDefinition]);
    expect(
      sample(
        await metrics.registry.metrics(),
        `relora_rpc_started_total{service="relora.v1.TrainingService",method="WatchJob"}`,
      ),
    ).toBe(0);
    const context = {
      metadata: new Metadata(),
      peer: '',
      caller: nobody,
      certificate: () => undefined,
      signal: new AbortController().signal,
      end: () => {},
    };
    const call = { method, context };
    const answers = async function* () {
      yield [Buffer.from('answer')];
    };
    const refuses = (): never => {
      throw new ServiceError('JOB_NOT_FOUND', { jobId: 'no' });
    };
    const seen: string[] = [];
    for await (const answer of middleware(call, answers)) seen.push(String(answer));
    expect(seen).toEqual(['answer']);
    await expect(middleware(call, refuses).next()).rejects.toThrow('no');
    const text = await metrics.registry.metrics();
    const labels = 'service="relora.v1.TrainingService",method="GetJob"';
    expect(sample(text, `relora_rpc_started_total{${labels}}`)).toBe(2);
    expect(sample(text, `relora_rpc_handled_total{${labels},code="OK"}`)).toBe(1);
    expect(sample(text, `relora_rpc_handled_total{${labels},code="NOT_FOUND"}`)).toBe(1);
    expect(sample(text, `relora_rpc_seconds_count{${labels}}`)).toBe(2);
  });

  it('of unknown methods are counted together, so that clients cannot add series', async () => {
    const { address, metrics } = await openApi();
    for (const path of ['/made.up/One', '/made.up/Two', '/relora.v1.TrainingService/Three'])
      await rawCall(rawClient(address), path, Buffer.alloc(0));
    const text = await metrics.registry.metrics();
    expect(
      sample(text, 'relora_rpc_handled_total{service="unknown",method="unknown",code="UNIMPLEMENTED"}'),
    ).toBe(3);
    expect(text).not.toMatch(/made\.up|One|Three/);
  });
});

it('a tenant sees the series of its own jobs, and nothing of the server or of others', () => {
  const text = [
    '# HELP relora_jobs Jobs.',
    '# TYPE relora_jobs gauge',
    'relora_jobs{state="running"} 2',
    '# HELP relora_job_loss Loss.',
    '# TYPE relora_job_loss gauge',
    'relora_job_loss{job_id="acme.nightly"} 3',
    'relora_job_loss{job_id="nightly"} 4',
    'relora_job_loss{job_id="other.acme"} 5',
    '# HELP relora_job_rank Rank.',
    '# TYPE relora_job_rank gauge',
    'relora_job_rank{module="job_id=\\"acme.x\\"",job_id="other.x"} 6',
    'relora_job_rank{module="q_proj",job_id="acme.nightly"} 7',
    '',
  ].join('\n');
  expect(metricsOfTenant(text, 'acme').split('\n')).toEqual([
    '# HELP relora_job_loss Loss.',
    '# TYPE relora_job_loss gauge',
    'relora_job_loss{job_id="acme.nightly"} 3',
    '# HELP relora_job_rank Rank.',
    '# TYPE relora_job_rank gauge',
    'relora_job_rank{module="q_proj",job_id="acme.nightly"} 7',
    '',
  ]);
  expect(metricsOfTenant(text, 'default')).toContain('{job_id="nightly"} 4');
  expect(metricsOfTenant(text, 'nobody')).toBe('');
});
