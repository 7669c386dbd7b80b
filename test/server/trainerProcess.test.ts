import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const module = fileURLToPath(new URL('../../server/dist/trainer/trainerProcess.js', import.meta.url));

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
