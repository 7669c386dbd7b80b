import { execFile } from 'node:child_process';
import { chmodSync, copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { thisPlatform } from '@relora/engine/binaries';
import { readConfig } from '../../server/dist/config.js';
import type { Diagnosis } from '../../server/dist/doctor/doctor.js';
import { Confinement } from '../../server/dist/trainer/confinement.js';
import { temporaryFolder } from './parts.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const main = join(root, 'server/dist/main.js');
const { arch, libc } = thisPlatform();
// A package with a library for every system.
const foreign = arch === 'arm64' ? 'linux-x64-gnu' : 'linux-arm64-gnu';
const tokenizers = join(root, `node_modules/tokenizers/tokenizers.${foreign}.node`);
const foreignText = `is for ${foreign.slice(0, -4).replace('-', ' ')} with glibc, this is ${process.platform} ${arch}`;

async function run(args: string[], settings: Record<string, string> = {}) {
  const env = {
    PATH: process.env.PATH,
    RELORA_DATA_FOLDER: newFolder(),
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    ...settings,
  };
  return await new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
    execFile(process.execPath, args, { env }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

function newFolder(): string {
  const folder = temporaryFolder();
  chmodSync(folder, 0o700);
  return folder;
}

/** A folder for RELORA_NATIVE with the given files. */
function folderOf(files: Record<string, string>): string {
  const folder = temporaryFolder();
  for (const [name, path] of Object.entries(files)) {
    copyFileSync(path, join(folder, name));
    chmodSync(join(folder, name), 0o755);
  }
  return folder;
}

const built = {
  'relora.node': join(root, 'engine/native/build/relora.node'),
  confine: join(root, 'server/native/build/confine'),
};

describe('native code', () => {
  it.each([
    [
      'is not there',
      () => '/nowhere',
      /RELORA_NATIVE is \/nowhere, where there is no relora\.node: name auto/,
    ],
    ['is for another system', () => folderOf({ 'relora.node': tokenizers }), new RegExp(foreignText)],
    [
      'is asked for by a wrong word',
      () => 'prebuild',
      /RELORA_NATIVE.*auto, build, prebuilt, or the absolute path/,
    ],
  ])('that %s stops the start, in one line and with exit code 2', async (_, native, message) => {
    const { code, stdout, stderr } = await run([main], { RELORA_NATIVE: native() });
    expect({ code, stdout, lines: stderr.trim().split('\n').length }).toEqual({
      code: 2,
      stdout: '',
      lines: 1,
    });
    expect(stderr).toMatch(message);
  });

  it('is named by the doctor, which says what to do where it cannot be used', async () => {
    const doctor = async (settings: Record<string, string>) => {
      const { code, stdout } = await run([main, 'doctor', '--json'], settings);
      const { findings } = JSON.parse(stdout) as Diagnosis;
      return { code, ...findings.find(({ name }) => name === 'native code') };
    };
    expect(await doctor({})).toMatchObject({
      code: 0,
      state: 'ok',
      message: `compiled here (${built['relora.node']})`,
    });
    const folder = folderOf(built);
    expect(await doctor({ RELORA_NATIVE: folder })).toMatchObject({
      ...{ code: 0, state: 'ok', message: `from ${folder}, which RELORA_NATIVE names` },
    });
    const other = folderOf({ 'relora.node': tokenizers });
    expect(await doctor({ RELORA_NATIVE: other })).toMatchObject({
      ...{ code: 1, state: 'fault' },
      message: expect.stringContaining(foreignText) as string,
      cure: expect.stringContaining('npm run build') as string,
    });
  });

  it.skipIf(libc === null)('that confines children is looked for in the same place', () => {
    const confinementOf = (native: string) =>
      new Confinement(readConfig({ RELORA_SANDBOX: 'auto', RELORA_NATIVE: native }));
    const { means } = confinementOf('auto');
    expect(confinementOf(folderOf(built)).means).toBe(means);
    expect(confinementOf(folderOf({ confine: tokenizers })).problem).toContain(foreignText);
    expect(confinementOf(temporaryFolder()).problem).toContain('there is no confine');
  });
});

describe('on Windows', () => {
  const preload = "Object.defineProperty(process, 'platform', { value: 'win32' });";
  const windows = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(preload)}` };

  it.each([
    ['the server', [main], 2, 'the server does not run on Windows: use WSL2 or Docker'],
    ['its doctor', [main, 'doctor'], 2, 'the server does not run on Windows: use WSL2 or Docker'],
    ['the build', [join(root, 'engine/native/build.mjs')], 1, 'is not built on Windows: use WSL2 or Docker'],
    ['the set-up', [join(root, 'scripts/setup.mjs')], 1, 'built nor run on Windows: use WSL2 or Docker'],
  ])('%s says what to use, and stops', async (_, args, code, text) => {
    const ended = await run(args, windows);
    expect({ code: ended.code, stdout: ended.stdout }).toEqual({ code, stdout: '' });
    expect(ended.stderr).toContain(text);
  });
});
