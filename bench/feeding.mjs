/**
 * `node bench/feeding.mjs`: how fast a mixture of eight data sets delivers batches, from one thread and through a run's reader thread; what
 * that costs the training thread; and whether a run of steps without arithmetic that is killed a hundred times reads the same data in the
 * same order.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import { Dataset, prepareDataset, TrainingData } from '@relora/engine/data';
import { defaultRunSpec } from '@relora/engine/plan';

const { values } = parseArgs({
  options: { output: { type: 'string' }, megabytes: { type: 'string', default: '32' } },
});
const folder = mkdtempSync(join(tmpdir(), 'relora-feeding-'));
const tokensPerStep = 32_768;
/** Tokens per second of a fast card with a model of 60 M weights: the time of a batch is compared with the time of such a step. */
const cardRate = 1.4e6;
const kills = 100;
const weekSteps = 41 * 7 * 24 * 3600;
const stepsAround = 40;
const weights = [8, 7, 6, 5, 4, 3, 2, 1];

/** Eight kinds of text, so that all data sets differ. */
async function prepared(index) {
  const path = join(folder, `${index}.txt`);
  const line = `${'abcdefgh'[index]} counts its lines and says each, `;
  const lines = [];
  for (let bytes = 0, number = 0; bytes < Number(values.megabytes) * 1e6; number++) {
    lines.push(`${line}${number * 7919}\n`);
    bytes += line.length + 8;
  }
  writeFileSync(path, lines.join(''));
  const outputFolder = join(folder, `prepared-${index}`);
  await prepareDataset(
    {
      files: [{ path, name: 'text.txt', format: 'text', split: 'train' }],
      ...{ outputFolder, tokenizer: { kind: 'bytes' }, textField: 'text', heldOutShare: 0, seed: 0 },
      limits: { shardBytesMax: 16 * 2 ** 20 },
    },
    () => {},
    new AbortController().signal,
  );
  rmSync(path);
  return outputFolder;
}

function specOf(sequenceLength) {
  return defaultRunSpec({
    mixture: weights.map((weight, index) => ({ dataset: `datasets/kind-${index}`, weight })),
    batch: { sequenceLength, sequenceCount: tokensPerStep / sequenceLength },
  });
}

/** Tokens per processor second of a single thread. */
async function inThread(sources, sequenceLength, seconds = 3) {
  const spec = specOf(sequenceLength);
  const batches = new TrainingData(spec, sources).batches();
  const { sequenceCount } = spec.batch;
  await batches.read(0, 20 * sequenceCount); // warm-up: opens files and compiles code
  const before = process.cpuUsage();
  const until = performance.now() + seconds * 1000;
  let steps = 0;
  while (performance.now() < until) await batches.read(++steps * sequenceCount, sequenceCount);
  const { user, system } = process.cpuUsage(before);
  return (steps * tokensPerStep) / ((user + system) / 1e6);
}

/** Time that a batch costs the requesting thread: the active time of its event loop. */
async function throughFeed(sources, sequenceLength, steps = 2000) {
  const spec = specOf(sequenceLength);
  const { sequenceCount } = spec.batch;
  const feed = new TrainingData(spec, sources).feed(null);
  await feed.read(0, 20 * sequenceCount);
  const started = performance.now();
  const before = performance.eventLoopUtilization();
  for (let step = 0; step < steps; step++) {
    await feed.read(step * sequenceCount, sequenceCount);
    feed.prepare((step + 1) * sequenceCount, sequenceCount);
  }
  const { active } = performance.eventLoopUtilization(before);
  const seconds = (performance.now() - started) / 1000;
  feed.close();
  return {
    rate: (steps * tokensPerStep) / seconds,
    share: active / steps / 1000 / (tokensPerStep / cardRate),
  };
}

/** Digests of the batches of these steps, from a process that is killed at each of the given steps. */
async function digestsOf(folders, steps, killedAt) {
  const script = fileURLToPath(new URL('../test/engine/feedSteps.mjs', import.meta.url));
  const runFolder = mkdtempSync(join(folder, 'run-'));
  const digests = [];
  for (const until of [...killedAt, steps.length]) {
    const order = { spec: specOf(512), folders, runFolder, steps: steps.slice(digests.length) };
    const child = spawn(process.execPath, [script, JSON.stringify(order)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const exit = once(child, 'exit');
    for await (const line of createInterface({ input: child.stdout })) {
      if (digests.length >= until) continue;
      digests.push(line.split(' ')[1]);
      if (digests.length === until) child.kill('SIGKILL');
    }
    await exit;
  }
  return digests;
}

try {
  const folders = [];
  for (const index of weights.keys()) folders.push(await prepared(index));
  const sources = await Promise.all(folders.map((path) => Dataset.open(path, { verify: false })));
  const loadBefore = loadavg()[0];
  const rows = [];
  for (const length of [128, 512, 2048]) {
    const cpu = await inThread(sources, length);
    const { rate, share } = await throughFeed(sources, length);
    rows.push([length, millions(cpu), millions(rate), `${(100 * share).toFixed(2)} %`]);
  }
  // A week of a fast card, of which only the steps around each kill are read.
  const steps = Array.from({ length: kills * stepsAround }, (_, place) => {
    const [index, within] = [Math.floor(place / stepsAround), place % stepsAround];
    return Math.floor(((index + 0.5) * weekSteps) / kills) + within;
  });
  const killedAt = Array.from({ length: kills }, (_, index) => Math.floor((index + 0.5) * stepsAround));
  const undisturbed = await digestsOf(folders, steps, []);
  const killed = await digestsOf(folders, steps, killedAt);
  const isSame = undisturbed.length === steps.length && killed.join() === undisturbed.join();
  const report = `# Feeding a run

${cpus()[0].model}, ${availableParallelism()} processors, Node ${process.versions.node}; load ${loadBefore.toFixed(1)} before, ${loadavg()[0].toFixed(1)} after.
A mixture of eight data sets of ${values.megabytes} MB (weights ${weights.join(', ')}), steps of ${tokensPerStep} tokens, files in the cache of the machine.

| sequence | one thread, M tokens/s of processor | through the thread of a run, M tokens/s | of a step at ${cardRate / 1e6} M tokens/s |
| ---: | ---: | ---: | ---: |
${rows.map((row) => `| ${row.join(' | ')} |`).join('\n')}

The last column is the time in which the thread that trains was busy with a batch; the goal is less than 1 %. The goal of the first is 5.

A week at 41 steps a second, ${weekSteps} steps without arithmetic, of which the ${stepsAround} around each of ${kills} places were read: once undisturbed and
once killed at each of the places (SIGKILL). Every batch was ${isSame ? 'the same' : '**another**'}.
`;
  console.log(report);
  if (values.output !== undefined) writeFileSync(values.output, report);
  process.exitCode = isSame ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}

function millions(rate) {
  return (rate / 1e6).toFixed(1);
}
