import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { heartbeat } from '../../server/dist/trainer/heartbeat.js';
import { temporaryFolder } from './parts.js';

const dist = new URL('../../server/dist/trainer/', import.meta.url);
const module = fileURLToPath(new URL('trainerProcess.js', dist));

test('a child that could not be started is ended without a signal to anybody else', () => {
  // In a separate process and process group: the signal once went to the server's whole group.
  const program = `
    import { TrainerProcess, trainerEntry } from ${JSON.stringify(module)};
    const log = { info() {}, warn() {}, error() {} };
    const child = new TrainerProcess({
      entry: trainerEntry, folder: '/nowhere/at/all', niceValue: 0, silenceMs: 1000, busyMs: 1000, graceMs: 10, log, memory: { bytesMax: 2 ** 40, name: 'none' },
      onMessage() {},
    });
    child.terminate();
    child.kill();
    console.log(JSON.stringify(await child.exited));
  `;
  const { stdout, signal } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    detached: true,
    encoding: 'utf8',
  } as never);
  expect(signal).toBeNull();
  expect(JSON.parse(String(stdout))).toMatchObject({ wasStarted: false });
});

test('a child that hangs ends when its server is gone, though it neither computes nor hears of it', async () => {
  const program = join(temporaryFolder(), 'hanging.mjs');
  writeFileSync(
    program,
    `import { startHeartbeat } from ${JSON.stringify(new URL('process/heartbeat.js', dist).href)};
     startHeartbeat();
     Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);`,
  );
  const child = spawn(process.execPath, [program], {
    stdio: ['ignore', 'ignore', 'inherit', 'ignore', 'pipe'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const beats = child.stdio[heartbeat.fileDescriptor] as Readable;
  for await (const data of beats) if (String(data).includes(heartbeat.hanging)) break; // this closes our end, as a server that dies does
  const [, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
  expect(signal).toBe('SIGKILL');
});
