import { dirname } from 'node:path';
import { writeFileSync } from 'node:fs';
import type { Task, TrainOrder } from '../messages.js';
import { ServerChannel } from './channel.js';
import { checkDataset } from './checkDataset.js';
import { checkWeights } from './checkWeights.js';
import { compileKernels } from './compileKernels.js';
import { describeDevices } from './describeDevices.js';
import { describeError } from './describeError.js';
import { evaluateModel } from './evaluate.js';
import { exportWeights } from './exportWeights.js';
import { generateText } from './generateText.js';
import { startHeartbeat } from './heartbeat.js';
import { locate } from './locate.js';
import { prepare } from './prepareDataset.js';
import { preview } from './previewDataset.js';
import { train } from './train.js';
import { watchCards } from './watchCards.js';

/**
 * The program of every child process of the server: it carries out one order, then ends. The engine runs only here, so that a fault in
 * native code or in a stranger's file ends this process and not the service.
 */
process.umask(0o077);
try {
  // If memory runs out, the kernel should end this process, which can be started again, and never the service.
  writeFileSync('/proc/self/oom_score_adj', '500');
} catch {
  // Not Linux, or not allowed: then the kernel chooses by size, which is mostly this process anyway.
}
// A service manager sends a signal to all processes of a service at once. But the server stops its runs, and has them save a checkpoint; a
// process that no longer listens is killed.
process.on('SIGINT', () => {});
let endsOnSignal = false;
process.on('SIGTERM', () => {
  if (endsOnSignal) process.exit(143);
});

startHeartbeat();
const channel = new ServerChannel((message) => {
  endsOnSignal = message.type === 'task';
  void (message.type === 'train' ? runTraining(message.order) : runTask(message.task));
});

async function runTraining(order: TrainOrder): Promise<void> {
  try {
    await train(order, channel);
  } catch (error) {
    await channel.report({ type: 'failed', ...describeError(error, 'TRAINER_ERROR', order.jobFolder) });
  }
  await channel.flushed();
  process.exit(0);
}

async function runTask(task: Task): Promise<void> {
  try {
    await channel.answer({ type: 'result', value: await perform(task) });
  } catch (error) {
    await channel.answer({
      type: 'failed',
      ...describeError(error, 'TASK_ERROR', 'outputFolder' in task ? dirname(task.outputFolder) : undefined),
    });
  }
  process.exit(0);
}

async function perform(task: Task) {
  switch (task.kind) {
    case 'prepareDataset':
      return await prepare(task, channel);
    case 'generate':
      return await generateText(task, channel);
    case 'evaluateModel':
      return await evaluateModel(task, channel.stop);
    case 'locateDocuments':
      return await locate(task);
    case 'previewDataset':
      return await preview(task);
    case 'checkDataset':
      return await checkDataset(task.folder);
    case 'checkWeights':
      return await checkWeights(task);
    case 'describeDevices':
      return await describeDevices(task);
    case 'watchCards':
      return await watchCards(task, channel);
    case 'compileKernels':
      return await compileKernels(task);
    case 'exportWeights':
      return await exportWeights(task);
  }
}
