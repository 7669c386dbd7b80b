/**
 * `npm run bench:history`: the cost of a long run's history. Appends an event per step as fast as the store accepts them, folds as a server
 * does, and measures the store, a curve of 1,000 points and memory after a hundredth, a tenth and all of the steps. The events have the
 * times of a run at 1,000 steps a second, so that the time window is as wide as there. If the machine is shared, the processor time of a
 * curve counts, not its wall time. Then the run continues at its rate for `--seconds`, with `--watchers` from the head and one from the
 * first event.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { defaultRunSpec } from '../engine/dist/plan/index.js';
import { serveApi, serviceNames } from '../server/dist/api/serveApi.js';
import { Health } from '../server/dist/grpc/health.js';
import { bucketStepCountFor, readHistory } from '../server/dist/jobs/metricHistory.js';
import { stepBody } from './history/stepBody.mjs';
import { claimJob, openParts } from './service/openParts.mjs';

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '1000000' },
    rate: { type: 'string', default: '1000' },
    watchers: { type: 'string', default: '20' },
    seconds: { type: 'string', default: '60' },
    output: { type: 'string' },
  },
});
const [stepCount, rate, watchers, seconds] = [values.steps, values.rate, values.watchers, values.seconds].map(
  Number,
);
const batchMs = 50; // as RunningJob batches them
const dataFolder = mkdtempSync(join(tmpdir(), 'relora-bench-'));
const { store, parts } = await openParts(dataFolder);
const { store: jobs, journal, folding, attempts } = parts;

/** A process with watchers, which prints a line when they have connected and another when the job has ended. */
class Readers {
  #process;
  #lines;

  constructor(args) {
    const program = fileURLToPath(new URL('history/readers.mjs', import.meta.url));
    this.#process = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    this.#lines = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]();
  }

  async next() {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error('A process of watchers has ended before its time');
    return JSON.parse(value);
  }

  kill() {
    this.#process.kill();
  }
}

const rows = [];
let watched = '';
try {
  const { job, key } = await claimJob(parts, { jobId: 'long', spec: { ...defaultRunSpec(), stepCount } });
  const stops = [stepCount / 100, stepCount / 10, stepCount / 2, stepCount].map(Math.round);
  const begin = performance.now();
  let step = 0;
  for (const stop of stops) {
    for (; step < stop;) {
      const events = [];
      // With the age that it would have at the end of the run.
      for (; step < stop && events.length < 256; step++)
        events.push({ timeMs: Date.now() - ((stepCount - step) * 1000) / rate, body: stepBody(step) });
      await attempts.append(key, events);
      if (step % 8192 < 256) await folding.fold(job.id);
    }
    await folding.fold(job.id);
    rows.push(await measure(job.id, stop, (performance.now() - begin) / 1000));
    console.log(rows.at(-1));
  }
  if (watchers > 0) watched = await watch(key);
} finally {
  await folding.stop();
  await store.close();
  rmSync(dataFolder, { recursive: true, force: true });
}
const table = [
  '| steps | store, MB | step events | spans | curve of 1,000 points, ms (median of 5) | of the processor, ms | resident, MB | appended and folded, events/s |',
  '| --- | --- | --- | --- | --- | --- | --- | --- |',
  ...rows.map((row) => `| ${Object.values(row).join(' | ')} |`),
].join('\n');
const head = `# A long run's history\n\n${cpus()[0]?.model ?? ''}, ${availableParallelism()} processors, load ${loadavg()[0].toFixed(1)}, Node ${process.versions.node}. An event for each step, at ${rate} a second by their times; RELORA_STEP_WINDOW_SECONDS and RELORA_JOB_EVENTS_MAX at their defaults.\n`;
console.log(`\n${head}\n${table}\n${watched}`);
if (values.output) writeFileSync(values.output, `${head}\n${table}\n${watched}`);

/**
 * The run continues at its rate for some seconds, folded as a server does, while readers in separate processes receive every event over
 * gRPC from the head, and one from the first event.
 */
async function watch(key) {
  const grpc = serveApi(parts, new Health(serviceNames));
  const port = await grpc.listen({ host: '127.0.0.1', port: 0 });
  const { lastSequence } = await jobs.find(key.jobId);
  const readers = [watchers, 0].map(
    (count) => new Readers([`127.0.0.1:${port}`, key.jobId, String(lastSequence), String(count)]),
  );
  try {
    const before = storeBytes();
    folding.start();
    for (const each of readers) await each.next(); // wait until they have connected
    const [residentBefore, start] = [process.memoryUsage.rss(), performance.now()];
    const busy = performance.eventLoopUtilization();
    for (let live = 0; live < rate * seconds;) {
      const due = Math.min(rate * seconds, Math.floor(((performance.now() - start) / 1000) * rate));
      const events = [];
      for (; live < due && events.length < 256; live++)
        events.push({ timeMs: Date.now(), body: stepBody(stepCount + live) });
      if (events.length > 0) await attempts.append(key, events);
      if (live >= due) await new Promise((resolve) => setTimeout(resolve, batchMs));
    }
    await attempts.failed(key, { reason: 'TRAINER_ERROR', message: 'The end' });
    const { utilization } = performance.eventLoopUtilization(busy);
    const residentAfter = process.memoryUsage.rss();
    const [fromHead, fromFirst] = await Promise.all(readers.map((each) => each.next()));
    const mb = (bytes) => Math.round(bytes / 1e6);
    const row = [
      ...[fromHead.eventCount, fromHead.medianMs, fromHead.p99Ms, fromHead.worstMs],
      ...[`${fromFirst.messageCount} messages for ${fromFirst.eventCount} events`, fromFirst.caughtUpSeconds],
      ...[`${mb(residentBefore)}, ${mb(residentAfter)}`, `${mb(before)}, ${mb(storeBytes())}`],
      Math.round(100 * utilization),
    ];
    return `
The run continues for ${seconds} s at ${rate} steps a second, with ${watchers} watchers of every event from the head and one from the first:

| events that came | median age, ms | p99, ms | worst, ms | the one from the first | s until it was at the head | resident before and after, MB | store before and after, MB | busy, % |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| ${row.join(' | ')} |
`;
  } finally {
    for (const each of readers) each.kill();
    grpc.close();
  }
}

function storeBytes() {
  return readdirSync(dataFolder)
    .filter((name) => name.startsWith('store.db'))
    .reduce((sum, name) => sum + statSync(join(dataFolder, name)).size, 0);
}

function middle(values) {
  return values.sort((a, b) => a - b)[values.length >> 1];
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
  const bytes = storeBytes();
  const [times, used] = [[], []];
  const job = await jobs.find(jobId);
  for (let round = 0; round < 5; round++) {
    const [start, before] = [performance.now(), process.cpuUsage()];
    await readHistory(journal, job, bucketStepCountFor(job, 1000), new AbortController().signal);
    times.push(performance.now() - start);
    const { user, system } = process.cpuUsage(before);
    used.push((user + system) / 1000);
  }
  return {
    steps,
    storeMb: Math.round(bytes / 1e6),
    stepEvents: await count('events', 'step'),
    spans: await count('step_spans', 'last_step'),
    curveMs: Math.round(middle(times)),
    curveProcessorMs: Math.round(middle(used)),
    residentMb: Math.round(process.memoryUsage().rss / 1e6),
    eventsPerSecond: Math.round(steps / seconds),
  };
}
