/**
 * `node bench/longRun.mjs`: a job of an hour on a mixture, with checkpoints, evaluations and samples every five minutes and a kill every
 * three, held against the same job that nobody disturbs: losses of all steps and weights must have the same bits, and curves must
 * be the same before and after steps were folded. Each job has a server of its own, with one thread. The one that is killed is halted
 * where it is ahead of its hour, so that the whole takes about an hour on a slow machine and on a fast one. Every second kill ends
 * trainer and server, the others the trainer alone. With `--folder` it continues after it was ended itself.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { killRegularly, pace } from './longRun/disturb.mjs';
import { jobSpec, makeDatasets } from './longRun/job.mjs';
import { Losses } from './longRun/losses.mjs';
import { Metric } from '@relora/sdk/contract';
import { reportOf } from './longRun/report.mjs';
import { LongServer } from './longRun/server.mjs';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '60' },
    steps: { type: 'string', default: '30000' },
    'kill-every': { type: 'string', default: '180' },
    every: { type: 'string', default: '300' },
    folder: { type: 'string' },
    output: { type: 'string' },
  },
});
const [minutes, stepCount, killSeconds, everySeconds] = [
  values.minutes,
  values.steps,
  values['kill-every'],
  values.every,
].map(Number);
const folder = values.folder ?? mkdtempSync(join(tmpdir(), 'relora-long-run-'));
mkdirSync(folder, { recursive: true });
console.log(`In ${folder}`);
// So that what runs at the end of the process does, and no server outlives it.
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));
const loadBefore = loadavg()[0];

const begun = Date.now();
const [undisturbed, killed] = await Promise.all([run('undisturbed'), run('killed')]);
const { text, svg, isEqual } = reportOf({
  ...{ undisturbed, killed, stepCount, killSeconds, everySeconds },
  minutes: (Date.now() - begun) / 60_000,
  machine: `${cpus()[0]?.model}, ${availableParallelism()} processors, load ${loadBefore.toFixed(1)} before and ${loadavg()[0].toFixed(1)} after, Node ${process.versions.node}`,
});
console.log(text);
if (values.output !== undefined) {
  writeFileSync(`${values.output}.md`, text);
  writeFileSync(`${values.output}.svg`, svg);
}
if (values.folder === undefined) rmSync(folder, { recursive: true, force: true });
process.exit(isEqual ? 0 : 1);

/** One of the two jobs from its data sets to its weights. */
async function run(name) {
  const server = await LongServer.start(join(folder, name));
  const client = server.client();
  await makeDatasets(client);
  const job = `jobs/${name}`;
  await client.createJob(jobSpec({ stepCount, everySeconds }), {
    jobId: name,
    requestId: `00000000-0000-4000-8000-00000000000${name === 'killed' ? 1 : 0}`,
  });
  const losses = new Losses(join(folder, `${name}.jsonl`));
  const disturbances =
    name === 'killed'
      ? [killRegularly(server, killSeconds), pace(server, losses, { stepCount, seconds: 60 * minutes })]
      : [];
  await losses.follow(client, job);
  await Promise.all(disturbances.map(async (end) => await end()));
  const [artifact] = await client.listArtifacts(job);
  const result = {
    name,
    state: (await client.getJob(job)).state,
    weights: artifact?.files.find(({ fileName }) => fileName.endsWith('.safetensors'))?.sha256,
    losses,
    kills: server.kills,
    folded: await client.getMetricHistory(job, { metrics: [Metric.LOSS], pointsMax: 1000 }),
  };
  client.close();
  await server.stop();
  return result;
}
