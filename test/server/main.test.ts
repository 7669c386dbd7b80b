import { readFileSync } from 'node:fs';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { instructionSets, loadNativeAddon } from '@relora/engine';
import { createLog, readConfig, settings, startServer } from '@relora/server';
import { expect, test } from 'vitest';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder } from './parts.js';

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

function run(
  args: string[],
  env: Record<string, string> = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [main, ...args], { env }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

test('every wrong setting is named at once, and the exit code is 2', async () => {
  const { code, stdout, stderr } = await run([], {
    RELORA_SLOTS: 'many',
    RELORA_SLOT: '2',
    RELORA_DEVICE: 'abacus',
  });
  expect(code).toBe(2);
  expect(stdout).toBe('');
  expect(stderr.trim().split('\n')).toHaveLength(3);
  expect(stderr).toContain('RELORA_SLOTS must be a whole number from 1 to 64, not "many"');
  expect(stderr).toContain('did you mean RELORA_SLOTS?');
  expect(stderr).toContain('RELORA_DEVICE must be one of');
});

test('--help lists every setting, --version prints the version, anything else is refused', async () => {
  const { code, stdout } = await run(['--help']);
  expect(code).toBe(0);
  for (const { variable, reason } of Object.values(settings)) {
    expect(stdout).toContain(`  ${variable}\n      ${reason}\n`);
  }
  expect((await run(['--version'])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  const refused = await run(['--port']);
  expect(refused).toMatchObject({ code: 2 });
  const commands = new Set([...stdout.matchAll(/^relora-server ([a-z]+)/gm)].map(([, name]) => name!));
  expect(commands.size).toBeGreaterThan(4);
  const page = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
  for (const name of commands) {
    expect(refused.stderr).toContain(` ${name},`);
    expect(page).toContain(`\`${name}\``);
  }
});

test('health ends with 0 while a server has the data folder, and with 1 when none has', async () => {
  const folder = temporaryFolder();
  const env = { RELORA_DATA_FOLDER: folder };
  expect(await run(['health'], env)).toMatchObject({ code: 1 });
  const { process: server, exited } = await startServerProcess(folder);
  expect(await run(['health'], env)).toEqual({ code: 0, stdout: '', stderr: '' });
  server.kill('SIGKILL');
  await exited;
  expect(await run(['health'], env)).toMatchObject({ code: 1 });
});

test.each(['RELORA_GRPC_ADDRESS', 'RELORA_HTTP_ADDRESS'])(
  'a port that is taken is one line, and the exit code is 1: %s',
  async (variable) => {
    const { grpcAddress } = await startServerProcess(temporaryFolder());
    const addresses = { RELORA_GRPC_ADDRESS: '127.0.0.1:0', RELORA_HTTP_ADDRESS: '127.0.0.1:0' };
    const folder = temporaryFolder();
    const { code, stdout, stderr } = await run([], {
      ...addresses,
      RELORA_DATA_FOLDER: folder,
      [variable]: grpcAddress,
    });
    // Log lines from before the ports are opened do not belong to the failure.
    expect(code).toBe(1);
    expect(stdout).not.toContain('Serving gRPC');
    expect(stderr).toMatch(
      /^relora-server: [^\n]*EADDRINUSE[^\n]*: stop what listens there, or set [^\n]*\n$/,
    );
  },
);

test('one line says where the server listens, and SIGTERM ends it with 0', async () => {
  const server = await startServerProcess(temporaryFolder());
  expect(server.grpcAddress).toMatch(/^127\.0\.0\.1:[1-9]\d+$/);
  expect((await fetch(`http://${server.httpAddress}/readyz`)).status).toBe(200);
  server.process.kill('SIGTERM');
  expect(await server.exited).toEqual({ code: 0, signal: null });
});

test('SIGTERM is heard from the first line on, and ends a server that is still starting', async () => {
  // Sends the signal from within the process as soon as it has a handler.
  const preload = `
    const look = () => process.listenerCount('SIGTERM') > 0 ? process.kill(process.pid, 'SIGTERM') : setImmediate(look);
    look();`;
  const { code, stdout, stderr } = await run([], {
    NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(preload)}`,
    RELORA_DATA_FOLDER: temporaryFolder(),
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
  });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).not.toContain('Serving');
});

const present = loadNativeAddon().describe().instructionSets;
const missing = instructionSets.find((name) => !present.includes(name));

test('a server whose settings force instructions of no processor does not start, and holds nothing', async () => {
  const folder = temporaryFolder();
  const addresses = { RELORA_GRPC_ADDRESS: '127.0.0.1:0', RELORA_HTTP_ADDRESS: '127.0.0.1:0' };
  const config = readConfig({ RELORA_DATA_FOLDER: folder, RELORA_LOG_LEVEL: 'silent', ...addresses });
  const log = createLog(config);
  const forced = startServer({ ...config, instructionSet: 'abacus' as never }, { log });
  await expect(forced).rejects.toMatchObject({
    name: 'ConfigInvalid',
    problems: [expect.stringMatching(/^RELORA_INSTRUCTION_SET must be auto or .*portable, not abacus$/)],
  });
  const portable = await startServer({ ...config, instructionSet: 'portable' }, { log });
  await portable.stop();
});

test.skipIf(missing === undefined)(
  'instructions that are forced and that the processor lacks stop the start, with exit code 2',
  async () => {
    const { code, stderr } = await run([], {
      RELORA_INSTRUCTION_SET: missing!,
      RELORA_DATA_FOLDER: temporaryFolder(),
      RELORA_GRPC_ADDRESS: '127.0.0.1:0',
      RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    });
    expect(code).toBe(2);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(stderr).toContain(`${present.join(', ')}, not ${missing}`);
  },
);

test('a folder that cannot be used is explained in one line, with exit code 1', async () => {
  const { code, stderr } = await run([], {
    RELORA_DATA_FOLDER: '/dev/null/relora',
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
  });
  expect(code).toBe(1);
  expect(stderr.trim().split('\n')).toHaveLength(1);
  expect(stderr).toContain('/dev/null/relora');
});

test.each([
  [
    'cannot be loaded, since it is for another system',
    { npm_config_platform: process.platform === 'linux' ? 'darwin' : 'linux' },
    /^relora-server: a library does not run on this system \(.+\): Linux needs glibc 2\.29 or newer, or musl\n$/,
  ],
  [
    'is not there for this processor',
    { npm_config_arch: 'riscv64' },
    /^relora-server: a package is missing \(No native build .*riscv64.*\): install again on this system.*\n$/,
  ],
])('a binary of SQLite that %s is explained in one line, with exit code 1', async (_, variables, said) => {
  const { code, stderr } = await run([], { RELORA_DATA_FOLDER: temporaryFolder(), ...variables });
  expect([code, stderr]).toEqual([1, expect.stringMatching(said)]);
});
