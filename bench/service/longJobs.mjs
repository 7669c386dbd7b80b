import { ReloraClient } from '@relora/sdk';
import { sql } from 'kysely';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { defaultRunSpec } from '../../engine/dist/plan/index.js';
import { stepBody } from '../history/stepBody.mjs';
import { table } from '../table.mjs';
import { claimJob, openParts } from './openParts.mjs';
import { quantile, startServer, withFolder } from './server.mjs';

const jobCount = Number(process.env.BENCH_LONG_JOBS ?? 1000);
const stepCount = Number(process.env.BENCH_LONG_STEPS ?? 1_000_000);
/** Newest events per job that are not folded: with a thousand jobs the default would leave 14 GB here. */
const eventsKept = Number(process.env.BENCH_LONG_EVENTS_KEPT ?? 1000);
const rounds = 40;

/** Costs of a server with a thousand jobs of a million steps each: start, list, page, curve. */
export async function longJobs() {
  return await withFolder(async (folder) => {
    const filled = await fill(folder);
    const server = await startServer(folder, { RELORA_JOB_EVENTS_MAX: String(eventsKept) });
    const client = new ReloraClient({ address: server.grpcAddress });
    const post = async (method, body) => {
      const response = await fetch(`http://${server.httpAddress}/api/relora.v1.${method}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
      if (!response.ok) throw new Error(`${method}: ${response.status} ${await response.text()}`);
      await response.text();
    };
    try {
      const { value: first } = await client.listJobs({ pageSize: 1 }).next();
      const name = first.name;
      const rows = [];
      for (const [what, call] of [
        ['list of 50 (gRPC)', async () => await take(client.listJobs({ pageSize: 50 }), 50)],
        ['page: its file', async () => await (await fetch(`http://${server.httpAddress}/`)).text()],
        ['page: its list', async () => await post('TrainingService/ListJobs', { pageSize: 50 })],
        ['page: a job', async () => await post('TrainingService/GetJob', { name })],
        [
          'curves of a job, 1,000 points of the loss',
          async () => await client.getMetricHistory(name, { metrics: ['METRIC_LOSS'], pointsMax: 1000 }),
        ],
      ])
        rows.push([what, ...(await measured(call))]);
      const start = `The store has ${filled.spans} spans and ${filled.events} events, ${filled.megabytes} MB. The server answers ${(server.startMs / 1000).toFixed(2)} s after its process began.`;
      return `## ${jobCount} jobs of ${stepCount} steps\n\n${start}\n\n${table(['call', 'median, ms', 'p99, ms'], rows)}`;
    } finally {
      client.close();
      await server.stop();
    }
  });
}

async function measured(call) {
  const times = [];
  for (let round = 0; round < rounds; round++) {
    const beganMs = performance.now();
    await call();
    times.push(performance.now() - beganMs);
  }
  return [quantile(times, 0.5).toFixed(1), quantile(times, 0.99).toFixed(1)];
}

async function take(entries, count) {
  const taken = [];
  for await (const entry of entries) if (taken.push(entry) === count) return;
}

/** One job with events written by a run and folded by the server, and copies of its rows under other names. */
async function fill(dataFolder) {
  const { store, parts } = await openParts(dataFolder, { RELORA_JOB_EVENTS_MAX: String(eventsKept) });
  const { db } = store;
  const { job, key } = await claimJob(parts, {
    jobId: 'job-0',
    displayName: 'A long one',
    labels: { team: 'tales' },
    spec: { ...defaultRunSpec(), stepCount },
  });
  const dayMs = 86_400_000;
  for (let step = 0; step < stepCount;) {
    const events = [];
    for (; step < stepCount && events.length < 256; step++)
      events.push({ timeMs: Date.now() - dayMs + step, body: stepBody(step) });
    await parts.attempts.append(key, events);
    if (step % 8192 < 256) await parts.folding.fold(job.id);
  }
  await parts.folding.fold(job.id);
  await parts.attempts.failed(key, { reason: 'TRAINER_ERROR', message: 'The end' });
  await parts.folding.fold(job.id);
  await copyJobs(db);
  const count = async (name) =>
    (
      await db
        .selectFrom(name)
        .select(({ fn }) => fn.countAll().as('count'))
        .executeTakeFirstOrThrow()
    ).count;
  const counts = { events: await count('events'), spans: await count('step_spans') };
  await parts.folding.stop();
  await parts.tasks.stop();
  await store.close();
  return { ...counts, megabytes: Math.round(statSync(join(dataFolder, 'store.db')).size / 1e6) };
}

async function copyJobs(db) {
  for (const name of ['jobs', 'events', 'step_spans', 'job_labels']) {
    const idColumn = name === 'jobs' ? 'id' : 'job_id';
    const columns = (await sql`select name from pragma_table_info(${name})`.execute(db)).rows.map(
      ({ name: column }) => column,
    );
    for (let index = 1; index < jobCount; index++) {
      const values = columns.map((column) => {
        if (column === idColumn || (name === 'jobs' && column === 'name')) return sql.lit(`job-${index}`);
        if (column === 'create_time_ms') return sql`create_time_ms - ${sql.lit(index * 1000)}`;
        return sql.ref(column);
      });
      await sql`insert into ${sql.table(name)} (${sql.join(columns.map((column) => sql.ref(column)))})
        select ${sql.join(values)} from ${sql.table(name)} where ${sql.ref(idColumn)} = 'job-0'`.execute(db);
    }
  }
}
