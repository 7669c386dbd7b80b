// The server of bench/watchers.mjs, with a job whose events come at a fixed rate; prints its address, and begins on a signal at its input.
import { once } from 'node:events';
import { performance } from 'node:perf_hooks';
import { serveApi, serviceNames } from '../server/dist/api/serveApi.js';
import { Health } from '../server/dist/grpc/health.js';
import { defaultRunSpec } from '../engine/dist/plan/index.js';
import { claimJob, openParts } from './service/openParts.mjs';

const [dataFolder, rate, seconds] = process.argv.slice(2);
const batchMs = 50; // as RunningJob batches them
const { store, parts } = await openParts(dataFolder);
const grpc = serveApi(parts, new Health(serviceNames));
const port = await grpc.listen({ host: '127.0.0.1', port: 0 });

const stepCount = rate * seconds;
const { key } = await claimJob(parts, { jobId: 'fast', spec: { ...defaultRunSpec(), stepCount } });
const { attempts } = parts;
console.log(`127.0.0.1:${port}`);
await once(process.stdin, 'data');

const start = performance.now();
const busy = performance.eventLoopUtilization();
const cpuBefore = process.cpuUsage();
for (let step = 0; step < stepCount;) {
  const due = Math.min(stepCount, Math.floor(((performance.now() - start) / 1000) * rate));
  const events = [];
  for (; step < due && events.length < 256; step++) events.push({ timeMs: Date.now(), body: stepBody(step) });
  if (events.length > 0) await attempts.append(key, events);
  if (step >= due) await new Promise((resolve) => setTimeout(resolve, batchMs));
}
await attempts.failed(key, { reason: 'TRAINER_ERROR', message: 'The end' });
const { utilization: elu } = performance.eventLoopUtilization(busy);
console.log(JSON.stringify({ elu, rssBytes: process.memoryUsage.rss() }));
await once(process.stdin.resume(), 'end'); // until every watcher has read everything
const { user, system } = process.cpuUsage(cpuBefore);
console.log(JSON.stringify({ cpuSeconds: (user + system) / 1e6 }));
grpc.close();
await store.close();
process.exit(0);

function stepBody(step) {
  return {
    kind: 'step',
    step,
    phase: 'adapter',
    loss: 3 + Math.sin(step),
    gradientNorm: 1,
    learningRate: 1e-3,
    tokenCount: 8192,
    trainedTokens: 8192 * (step + 1),
    stepSeconds: 0.001,
    skipped: false,
    residentBytes: 1e9,
  };
}
