/**
 * `node bench/longRun.mjs`: an hour-long job on a mixture, with checkpoints, evaluations and samples every five minutes and a kill every
 * three, compared with the same job undisturbed: losses of all steps and weights must have the same bits, and curves must not change when
 * steps are folded. Each job has its own server, with one thread. The killed job is halted whenever it is ahead of its hour, so that the
 * whole takes about an hour on slow and fast machines alike. Every second kill ends trainer and server, the others only the trainer. With
 * `--folder` it can be interrupted itself and continues.
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
// Runs exit handlers, so that no server is left running.
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

/** Runs one of the two jobs, from its data sets to its weights. */
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
