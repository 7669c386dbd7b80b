import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { GivenSpec, RunSpec } from '@relora/engine/plan';
import { onTestFinished } from 'vitest';
import type { DatasetSpec } from '../../server/dist/datasets/dataset.js';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { DatasetPreparer } from '../../server/dist/trainer/datasetPreparer.js';
import { TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { trainerEntry } from '../../server/dist/trainer/trainerProcess.js';
import { allEvents, jobWhen, openParts, runSpec, submit, temporaryFolder, type Parts } from './parts.js';

export const settings = { RELORA_THREADS: '1' };

/** A server with the real trainer and a small real data set. */
export async function trainingParts({
  entry = trainerEntry,
  ...changes
}: Record<string, string> = {}): Promise<Parts & { tasks: TaskRunner }> {
  const parts = await openParts({ ...settings, ...changes }, temporaryFolder(), entry);
  const tasks = new TaskRunner(parts.config, parts.log);
  const path = join(parts.dataFolder, 'tale.txt');
  writeFileSync(path, tale(400));
  await prepare(parts, tasks, 'text', [{ path, format: 'text' }]);
  await parts.supervisor.start();
  return { ...parts, tasks };
}

export async function prepare(
  parts: Parts,
  tasks: TaskRunner,
  id: string,
  files: { path: string; format: 'text' | 'jsonl' }[],
  changes: Partial<DatasetSpec> = {},
) {
  const preparer = new DatasetPreparer(
    parts.datasets,
    tasks,
    parts.config,
    parts.feed,
    parts.leases,
    parts.stage,
    parts.log,
    (error) => parts.storeFailures.push(error),
  );
  onTestFinished(async () => await preparer.stop());
  await parts.datasets.register({
    datasetId: id,
    displayName: '',
    files: files.map(({ path, format }) => ({
      fileName: 'tale',
      serverPath: path,
      format,
      split: null,
      sizeBytes: 1,
      sha256: null,
    })),
    spec: { tokenizer: { kind: 'bytes' }, heldOutShare: 0.1, textField: 'text', seed: 0, ...changes },
  });
  preparer.start();
  for (;;) {
    const dataset = (await parts.datasets.find(id))!;
    if (dataset.state === 'ready' || dataset.state === 'failed') {
      await preparer.stop(); // two of them would prepare the next one concurrently
      return dataset;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export function tale(sentences: number): string {
  const parts = [
    'The king',
    'A small adapter',
    'The old merge',
    'Every matrix',
    'saw',
    'forgot',
    'built',
    'a low rank',
    'the long road',
    'its moments',
  ];
  let text = '';
  for (let index = 0; index < sentences; index++)
    text += `${parts[index % 4]} ${parts[4 + (index % 3)]} ${parts[7 + ((index * 7) % 3)]}. `;
  return text;
}

export function spec(changes: GivenSpec = {}): RunSpec {
  return runSpec('', {
    warmStart: { stepCount: 4, learningRate: 5e-3, warmupStepCount: 1 },
    stepCount: 12,
    adapter: { ...runSpec().adapter!, cycleStepCount: 4, targetModules: ['q_proj', 'down_proj'] },
    checkpoint: { everyStepCount: 4, keepCount: 2 },
    everyStepEvent: true,
    ...changes,
  });
}

/** Long enough that its tenth step is before its end, however fast the machine is. */
export const long = { stepCount: 200 };

/** The last reported loss of each step: for steps repeated after a crash the last value. */
export async function lossesOf(parts: Parts, jobId: string): Promise<number[]> {
  const losses: number[] = [];
  for (const { body } of await allEvents(parts, jobId))
    if (body.kind === 'step') losses[body.step] = body.loss;
  return losses;
}

export async function run(parts: Parts, changes: GivenSpec = {}) {
  const { id } = await submit(parts, { spec: spec(changes) });
  return await jobWhen(parts, id, ({ state }) => isTerminal(state));
}
