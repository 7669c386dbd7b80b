// How the service responds while a trainer uses every core: trains llama-9m for a while on a server of its own, calls it all the time
// through the SDK, and prints the delays of the service's event loop and of the calls.
//   node scripts/measureResponsiveness.mjs [seconds, default 30]
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ReloraClient } from '@relora/sdk';

const seconds = Number(process.argv[2] ?? 30);
const watcherCount = 10;
const callEveryMs = 50;

const folder = mkdtempSync(join(tmpdir(), 'relora-responsiveness-'));
const server = spawn(process.execPath, [fileURLToPath(new URL('../server/dist/main.js', import.meta.url))], {
  env: {
    PATH: process.env.PATH,
    RELORA_DATA_FOLDER: join(folder, 'data'),
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
  },
  stdio: ['ignore', 'pipe', 'inherit'],
});
let client;
try {
  const { grpcAddress, httpAddress } = await addressesOf(server);
  client = new ReloraClient({ address: grpcAddress });
  const text = Array.from({ length: 40_000 }, (_, line) => `Line ${line} of ${line * 7919} is not the last.`);
  const path = join(folder, 'text.txt');
  writeFileSync(path, text.join('\n'));
  const { name: dataset } = await client.uploadDataset({ files: [{ path }] });
  const job = await client.createJob({
    model: { preset: 'llama-9m' },
    dataset,
    stepCount: 100_000,
    warmStart: { stepCount: 0 },
    adapter: { cycleStepCount: 1000, rank: 32 },
    batch: { sequenceLength: 512, sequenceCount: 32, microBatchSequenceCount: 32 },
    evaluation: { finalTokenCount: 512 },
  });
  for await (const event of client.watch(job.name)) if (event.kind === 'step') break;
  for (let count = 0; count < watcherCount; count++) void follow(client, job.name);

  await loopDelay(httpAddress); // resets the statistics
  const calls = [];
  const end = performance.now() + seconds * 1000;
  while (performance.now() < end) {
    const begin = performance.now();
    await client.getJob(job.name);
    calls.push(performance.now() - begin);
    await delay(callEveryMs);
  }
  const loopMs = 1000 * (await loopDelay(httpAddress));
  const { progress } = await client.getJob(job.name);
  await client.cancelJob(job.name);

  calls.sort((one, other) => one - other);
  const percentile = (share) =>
    calls[Math.min(calls.length - 1, Math.floor(share * calls.length))].toFixed(1);
  console.log(
    `${seconds} s, ${availableParallelism()} processors, ${progress.step} steps of ${(16384 / progress.tokensPerSecond).toFixed(1)} s`,
  );
  console.log(`event loop of the service: p99 ${loopMs.toFixed(1)} ms`);
  console.log(
    `GetJob, ${calls.length} calls: p50 ${percentile(0.5)} ms, p99 ${percentile(0.99)} ms, max ${percentile(1)} ms`,
  );
} finally {
  client?.close();
  server.kill('SIGTERM');
  await once(server, 'exit');
  rmSync(folder, { recursive: true, force: true });
}

async function addressesOf(child) {
  for await (const line of createInterface({ input: child.stdout })) {
    const entry = JSON.parse(line);
    if (entry.grpcAddress !== undefined) {
      child.stdout.resume(); // the log is discarded, but must be read
      return entry;
    }
  }
  throw new Error('The server ended before it served');
}

async function follow(client, name) {
  try {
    const events = client.watch(name);
    while (!(await events.next()).done);
  } catch {
    // The server is stopped at the end of the measurement.
  }
}

/** 99th percentile since the last call, in seconds. */
async function loopDelay(httpAddress) {
  await delay(1100); // a scrape may be up to a second old
  const metrics = await (await fetch(`http://${httpAddress}/metrics`)).text();
  return Number(/^relora_event_loop_lag_seconds (\S+)$/m.exec(metrics)[1]);
}
