// Replaces the trainer: real messages from a real process, with faults on request (the prompt of the specification's samples).
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { llamaConfigOf } from '../../engine/dist/plan/index.js';
import { startHeartbeat } from '../../server/dist/trainer/process/heartbeat.js';
import { stepBody } from './stepBody.mjs';

const sha256 = 'a'.repeat(64);
/** Of '0123456789'. */
const sha256OfConfig = '84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882';
const execution = {
  engineVersion: '1',
  backend: 'reference',
  instructionSet: '',
  threadCount: 1,
  precision: 'float32',
  datasetSha256: sha256,
  basePrecision: 'float32',
  graphs: [{ module: 'q_proj', graph: 'separate' }],
  baseWeightsSha256: null,
  specSha256: sha256,
  nodeVersion: process.versions.node,
  tfjsVersion: '4.0.0',
  deviceModel: 'A processor',
  cardUuid: '',
  libraries: [],
  nccl: null,
  replicas: 1,
};
let number = 0;
let acknowledged = 0;
let stop;
let wake = () => {};
const changed = () => new Promise((resolve) => (wake = resolve));

startHeartbeat();
process.on('disconnect', () => process.exit(0));
process.on('message', (message) => {
  if (message.type === 'ack') acknowledged = message.number;
  if (message.type === 'stop') stop = message;
  if (message.type === 'train') void train(message.order);
  if (message.type === 'task') void task(message.task);
  wake();
});

async function say(message) {
  process.send({ ...message, number: ++number });
  while (number - acknowledged >= 32) await changed();
}

const step = (at) => stepBody(at, { stepSeconds: 0.01 });

let savedStep = -1;

async function checkpoint(order, at) {
  savedStep = at;
  const name = `step-${at}-${order.attempt}`;
  const path = join(order.jobFolder, 'checkpoints', name);
  mkdirSync(path, { recursive: true });
  writeFileSync(join(path, 'manifest.json'), String(at));
  await say({
    type: 'event',
    timeMs: Date.now(),
    body: { kind: 'checkpoint', step: at, path, sizeBytes: 1, manifestSha256: sha256, seconds: 0 },
  });
}

const hang = () => new Promise((resolve) => setTimeout(resolve, 1e9));
const spin = (milliseconds) => {
  for (const end = Date.now() + milliseconds; Date.now() < end;);
};
const block = () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);

async function train(order) {
  const script = order.spec.sample.prompt;
  const { attempt } = order;
  const begin = order.checkpoints[0] ?? order.origin;
  let at = begin === null ? 0 : Number(basename(begin.path).split('-')[1]);
  if (script === 'exitAtOnce') process.exit(0);
  if (script === 'neverStarted') await say({ type: 'finished', outcome: 'succeeded' });
  if (script === 'corruptFirst' && order.checkpoints.length > 1) {
    await say({ type: 'checkpointCorrupt', path: order.checkpoints[0].path, problem: 'a hash differs' });
    at = Number(basename(order.checkpoints[1].path).split('-')[1]);
  }
  await say({ type: 'started', execution, step: at });
  for (; at < order.spec.stepCount; at++) {
    if (stop) {
      if (script === 'deaf') await hang();
      // Like the trainer, reports each checkpoint once: when it is stopped, the step may already be saved.
      if (stop.keep && at !== savedStep) await checkpoint(order, at);
      await say({ type: 'finished', outcome: 'stopped' });
      return await leave();
    }
    if (at === 3) await misbehave(script, order);
    if (at === 8 && script === 'crashAfterCheckpoint' && attempt < 3) process.kill(process.pid, 'SIGSEGV');
    if (at === 8 && script === 'killAlways') process.kill(process.pid, 'SIGKILL');
    await say({ type: 'event', timeMs: Date.now(), body: step(at) });
    if (script === 'slow' || script === 'deaf') await new Promise((resolve) => setTimeout(resolve, 20));
    if ((at + 1) % order.spec.checkpoint.everyStepCount === 0) await checkpoint(order, at + 1);
  }
  // Twice before the export, once during it, and once more before it.
  if (script === 'crashAroundExport' && [1, 2, 4].includes(attempt)) process.kill(process.pid, 'SIGSEGV');
  const isCrashing = script === 'crashInExport' || (script === 'crashAroundExport' && attempt === 3);
  if (isCrashing && !order.exportedFormats.includes('gguf')) {
    const artifact = { id: `gguf-${attempt}`, format: 'gguf', weightType: 'float16', cycle: 1, step: at };
    await say({ type: 'exporting', artifact });
    while (acknowledged < number) await changed();
    process.kill(process.pid, 'SIGSEGV');
  }
  if (!order.exportedFormats.includes('huggingFace')) {
    const folder = join(order.jobFolder, 'artifacts', `merged-model-${attempt}`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'config.json'), '0123456789');
    await say({
      type: 'artifact',
      artifact: {
        id: `merged-model-${attempt}`,
        format: 'huggingFace',
        weightType: 'float32',
        castErrorMax: 0,
        cycle: 1,
        step: at,
        files: [{ fileName: 'config.json', sizeBytes: 10, sha256: sha256OfConfig }],
      },
    });
  }
  if (script === 'crashAfterExport' && attempt === 1) {
    while (acknowledged < number) await changed();
    process.kill(process.pid, 'SIGKILL');
  }
  await say({ type: 'finished', outcome: 'succeeded' });
  await leave();
}

async function misbehave(script, order) {
  const event = { type: 'event', timeMs: Date.now() };
  if (script.startsWith('fail ')) {
    await say({ type: 'failed', reason: script.slice('fail '.length), message: 'It is so; mend it' });
    return await leave();
  }
  if (script.startsWith('failOnce ') && order.attempt === 1) {
    await say({ type: 'failed', reason: script.slice('failOnce '.length), message: 'It is so; mend it' });
    return await leave();
  }
  switch (script) {
    case 'crash': {
      while (acknowledged < number) await changed();
      process.kill(process.pid, 'SIGSEGV');
      break;
    }
    case 'heap':
      console.error('FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory');
      process.abort();
      break;
    case 'exit0':
      process.exit(0);
      break;
    case 'block':
      process.on('SIGTERM', () => {});
      block();
      break;
    case 'compute':
      spin(12_000);
      break;
    case 'spin':
      process.on('SIGTERM', () => {});
      spin(1e9);
      break;
    case 'garbage':
      process.send({
        type: 'event',
        number: number + 1,
        timeMs: Date.now(),
        body: { kind: 'step', step: -1, __proto__: { loss: 1 } },
      });
      await hang();
      break;
    case 'flood':
      for (let count = 0; count < 20_000; count++)
        process.send({ ...event, number: ++number, body: step(3) });
      await hang();
      break;
    case 'skipNumber':
      process.send({ ...event, number: number + 2, body: step(3) });
      await hang();
      break;
    case 'foreignCheckpoint':
      process.send({
        ...event,
        number: number + 1,
        body: { kind: 'checkpoint', step: 3, path: '/etc', sizeBytes: 1, manifestSha256: sha256, seconds: 0 },
      });
      await hang();
      break;
    case 'startedTwice':
      process.send({ type: 'started', number: number + 1, step: 0, execution });
      await hang();
      break;
    case 'checkpointTwice':
      await checkpoint(order, 3);
      await checkpoint(order, 3);
      await hang();
      break;
    case 'climbingCheckpoint':
      process.send({
        ...event,
        number: number + 1,
        body: {
          kind: 'checkpoint',
          step: 3,
          path: `${order.jobFolder}/checkpoints/..`,
          sizeBytes: 1,
          manifestSha256: sha256,
          seconds: 0,
        },
      });
      await hang();
      break;
    case 'diverge':
      await say({ ...event, body: { ...step(3), loss: NaN, gradientNorm: Infinity, skipped: true } });
      await say({ type: 'failed', reason: 'TRAINING_DIVERGED', message: 'Step 3 has loss NaN' });
      return await leave();
    case 'fullDisk':
      if (order.attempt > 1) return;
      await say({ type: 'failed', reason: 'CHECKPOINT_NO_SPACE', message: 'No space for a checkpoint' });
      return await leave();
    case 'orphans':
      mkdirSync(join(order.jobFolder, 'checkpoints', '.tmp-1-3-abcd'), { recursive: true });
      mkdirSync(join(order.jobFolder, 'checkpoints', 'step-3-1'), { recursive: true });
      if (order.attempt === 1) process.kill(process.pid, 'SIGKILL');
      break;
    case 'wait':
      writeFileSync(join(order.jobFolder, 'waits'), String(process.pid));
      while (!stop && !existsSync(join(order.jobFolder, 'go')))
        await Promise.race([changed(), new Promise((resolve) => setTimeout(resolve, 10))]);
      break;
    default:
      break;
  }
}

async function leave() {
  while (acknowledged < number) await changed();
  process.exit(0);
}

/** Makes the job of a checkpoint continue until it has deleted the one after it, and so this one, too. */
async function untilLost(folder) {
  const parent = dirname(folder);
  writeFileSync(join(parent, '..', 'go'), '');
  const stepOf = (name) => Number(name.split('-')[1]);
  const after = stepOf(basename(folder)) + 1;
  for (;;) {
    const steps = readdirSync(parent).map(stepOf);
    if (!steps.includes(after) && Math.max(...steps) > after) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function task(order) {
  const script = order.prompt ?? order.preparedFolder ?? order.spec?.textField ?? '';
  if (script === 'crash') process.kill(process.pid, 'SIGSEGV');
  if (script === 'hang') await hang();
  if (script === 'loseCheckpoint' && order.source?.kind === 'checkpoint')
    await untilLost(order.source.folder);
  if (script === 'loseCheckpoint' && !existsSync(order.source.folder))
    process.send({ type: 'failed', reason: 'CHECKPOINT_CORRUPT', message: 'It is not there' });
  else if (script === 'fail')
    process.send({ type: 'failed', reason: 'DATASET_LINE_BROKEN', message: 'Line 3 is not JSON' });
  else if (order.kind === 'generate') {
    for (let count = 1; count <= order.tokenCountMax; count++)
      process.send({ type: 'part', value: { text: `${count} `, tokenCount: count, finishReason: null } });
    process.send({
      type: 'part',
      value: { text: '', tokenCount: order.tokenCountMax, finishReason: 'tokenCount' },
    });
    process.send({ type: 'result', value: null });
  } else if (order.kind === 'prepareDataset') {
    const size = { tokenCount: 10, documentCount: 1, textBytes: 10 };
    mkdirSync(order.outputFolder, { recursive: true });
    writeFileSync(
      join(order.outputFolder, 'manifest.json'),
      JSON.stringify(order.files.map(({ path }) => path)),
    );
    process.send({ type: 'part', value: 0.5 });
    if (script === 'slow') await hang();
    process.send({
      type: 'result',
      value: {
        tokenizer: { kind: 'bytes', vocabularySize: 257, endOfTextId: 256, sha256: '' },
        train: size,
        heldOut: size,
        manifestSha256: sha256,
      },
    });
  } else if (order.kind === 'checkWeights') {
    const config = llamaConfigOf(JSON.parse(readFileSync(join(order.folder, 'config.json'), 'utf8')));
    process.send({ type: 'result', value: { config, parameterCount: 1, tokenizerVocabularySize: null } });
  } else process.send({ type: 'result', value: [] });
  process.disconnect();
}
