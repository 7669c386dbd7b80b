import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { beginRun, disposeRun, openDevice, verifyCheckpoint } from '@relora/engine';
import { licenseDataset, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const child = fileURLToPath(new URL('trainAndSave.mjs', import.meta.url));
const spec = tinySpec({ checkpoint: { everyStepCount: 1 } });

/** Trains in a child and kills it some time after an event, when it is probably writing the next checkpoint. */
async function killAfter(event: string, delayMs: number, runFolder: string): Promise<void> {
  const trainer = spawn(
    process.execPath,
    [child, JSON.stringify(spec), (await dataset()).folder, runFolder],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  const exited = once(trainer, 'exit');
  let wasSeen = false;
  for await (const line of createInterface({ input: trainer.stdout })) {
    // It works until the next event; then it waits for a byte that never comes.
    if (line === event) setTimeout(() => trainer.kill('SIGKILL'), delayMs);
    if (!wasSeen) trainer.stdin.write('.');
    wasSeen ||= line === event;
  }
  expect((await exited)[1]).toBe('SIGKILL');
}

it('a run that was killed while it saved resumes from its newest checkpoint, exactly', async () => {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const begin = async (runFolder: string, checkpointPath?: string) =>
    beginRun({ spec, device, dataset: await dataset(), runFolder, checkpointPath, attempt: 2 });
  const straight = await begin(newFolder());
  await runLoop(straight);

  for (const [event, delayMs] of [
    ['step 3', 1],
    ['checkpoint 12', 2],
    ['step 15', 3],
  ] as const) {
    const runFolder = newFolder();
    await killAfter(event, delayMs, runFolder);
    const checkpoints = join(runFolder, 'checkpoints');
    const names = readdirSync(checkpoints).filter((name) => name.startsWith('step-'));
    // A checkpoint under its final name is complete, whatever other files exist.
    for (const name of names) await verifyCheckpoint(join(checkpoints, name));
    const newest = join(checkpoints, names.sort().at(-1)!);

    const resumed = await begin(runFolder, newest);
    expect(resumed.progress.nextStep).toBeGreaterThan(2);
    await runLoop(resumed);
    expect(await weightsOf(resumed)).toEqual(await weightsOf(straight));
    expect(existsSync(join(checkpoints, 'step-00000024-2'))).toBe(true);
    disposeRun(resumed);
  }
  disposeRun(straight);
});
