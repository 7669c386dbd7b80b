/**
 * `npm run bench:history`: what a long run leaves behind. Appends an event for each step as fast as the store takes them, folds as a
 * server does, and measures the store, a curve of 1,000 points and memory at a hundredth, a tenth and the whole of so many steps. The
 * times of the events are those of a run at 1,000 steps a second, so that the window of time is as wide as there.
 */
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { createLog, readConfig } from '@relora/server';
import { defaultRunSpec } from '../engine/dist/plan/index.js';
import { JobAttempts } from '../server/dist/jobs/jobAttempts.js';
import { bucketStepCountFor, readHistory } from '../server/dist/jobs/metricHistory.js';
import { createMetrics } from '../server/dist/metrics/metrics.js';
import { Quotas } from '../server/dist/quotas/quotas.js';
import { makeServerParts } from '../server/dist/serverParts.js';
import { openStore } from '../server/dist/store/openStore.js';

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '1000000' },
    rate: { type: 'string', default: '1000' },
    output: { type: 'string' },
  },
});
const [stepCount, rate] = [Number(values.steps), Number(values.rate)];
const dataFolder = mkdtempSync(join(tmpdir(), 'relora-bench-'));
const config = readConfig({ RELORA_DATA_FOLDER: dataFolder, RELORA_LOG_LEVEL: 'silent' });
const store = await openStore(dataFolder);
const quotas = await Quotas.open(config.quotaFile, createLog(config));
const { queue, store: jobs, journal, folding } = partsOf();
const attempts = new JobAttempts(journal, dataFolder);
const rows = [];
try {
  await queue.submit({
    jobId: 'long',
    displayName: '',
    labels: {},
    spec: { ...defaultRunSpec(), stepCount },
    warnings: [],
    origin: null,
    requestId: null,
    requestDigest: '',
  });
  const { job } = await queue.claimNext({ free: ['native'], resolve: () => 'native' });
  const key = { jobId: job.id, attempt: job.attempt };
  const stops = [stepCount / 100, stepCount / 10, stepCount / 2, stepCount].map(Math.round);
  const begin = performance.now();
  let step = 0;
  for (const stop of stops) {
    for (; step < stop;) {
      const events = [];
      // As old as it would be once the whole run is over.
      for (; step < stop && events.length < 256; step++)
        events.push({ timeMs: Date.now() - ((stepCount - step) * 1000) / rate, body: stepBody(step) });
      await attempts.append(key, events);
      if (step % 8192 < 256) await folding.fold(job.id);
    }
    await folding.fold(job.id);
    rows.push(await measure(job.id, stop, (performance.now() - begin) / 1000));
    console.log(rows.at(-1));
  }
} finally {
  quotas.close();
  await folding.stop();
  await store.close();
  rmSync(dataFolder, { recursive: true, force: true });
}
const table = [
  '| steps | store, MB | step events | spans | curve of 1,000 points, ms (median of 5) | resident, MB | appended and folded, events/s |',
  '| --- | --- | --- | --- | --- | --- | --- |',
  ...rows.map((row) => `| ${Object.values(row).join(' | ')} |`),
].join('\n');
const head = `# A long run's history\n\n${cpus()[0]?.model ?? ''}, ${availableParallelism()} processors, load ${loadavg()[0].toFixed(1)}, Node ${process.versions.node}. An event for each step, at ${rate} a second by their times; RELORA_STEP_WINDOW_SECONDS and RELORA_JOB_EVENTS_MAX at their defaults.\n`;
console.log(`\n${head}\n${table}`);
if (values.output) writeFileSync(values.output, `${head}\n${table}\n`);

function partsOf() {
  const stopping = new AbortController();
  return makeServerParts({
    config,
    log: createLog(config),
    store,
    metrics: createMetrics(),
    quotas,
    stopping: stopping.signal,
    onStoreFailure: (error) => {
      throw error;
    },
  });
}

async function measure(jobId, steps, seconds) {
  const count = async (table, column) =>
    (
      await store.db
        .selectFrom(table)
        .select(({ fn }) => fn.countAll().as('count'))
        .where('job_id', '=', jobId)
        .where(column, 'is not', null)
        .executeTakeFirstOrThrow()
    ).count;
  const bytes = readdirSync(dataFolder)
    .filter((name) => name.startsWith('store.db'))
    .reduce((sum, name) => sum + statSync(join(dataFolder, name)).size, 0);
  const times = [];
  const job = await jobs.find(jobId);
  for (let round = 0; round < 5; round++) {
    const start = performance.now();
    await readHistory(journal, job, bucketStepCountFor(job, 1000), new AbortController().signal);
    times.push(performance.now() - start);
  }
  return {
    steps,
    storeMb: Math.round(bytes / 1e6),
    stepEvents: await count('events', 'step'),
    spans: await count('step_spans', 'last_step'),
    curveMs: Math.round(times.sort((a, b) => a - b)[2]),
    residentMb: Math.round(process.memoryUsage().rss / 1e6),
    eventsPerSecond: Math.round(steps / seconds),
  };
}

function stepBody(step) {
  return {
    kind: 'step',
    step,
    phase: 'fullRank',
    loss: 3 + Math.sin(step) / 10,
    gradientNorm: 0.123456789 + step / 1e9,
    learningRate: 1e-3 / (1 + step / 1e6),
    tokenCount: 8192,
    trainedTokens: 8192 * (step + 1),
    stepSeconds: 0.001,
    skipped: false,
    residentBytes: 1e9 + step,
  };
}
