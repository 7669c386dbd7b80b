import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { expect, onTestFinished, test } from 'vitest';
import { main } from './serverProcess.js';
import { temporaryFolder } from './tinyJob.js';

test('a server whose log nobody reads any more serves on, and stops when it is asked to', async () => {
  const server = spawn(process.execPath, [main], {
    env: {
      PATH: process.env.PATH,
      RELORA_DATA_FOLDER: temporaryFolder(),
      RELORA_GRPC_ADDRESS: '127.0.0.1:0',
      RELORA_HTTP_ADDRESS: '127.0.0.1:0',
      RELORA_LOG_LEVEL: 'trace',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  onTestFinished(() => void server.kill('SIGKILL'));
  const exited = new Promise((resolve) => server.once('exit', (code) => resolve(code)));
  const address = await new Promise<string>((resolve) => {
    createInterface({ input: server.stdout }).on('line', (line) => {
      const { httpAddress } = JSON.parse(line) as { httpAddress?: string };
      if (httpAddress !== undefined) resolve(httpAddress);
    });
  });
  server.stdout.destroy();
  server.stderr.destroy();
  expect((await fetch(`http://${address}/healthz`)).status).toBe(200);
  server.kill('SIGTERM');
  expect(await exited).toBe(0);
});
