import { spawnSync } from 'node:child_process';
import { expect, it } from 'vitest';
import { main } from '../e2e/serverProcess.js';
import { temporaryFolder } from './parts.js';

it('says what a system needs on which one of its libraries cannot be loaded', () => {
  // The binary of SQLite for another system is taken.
  const { status, stderr } = start({
    npm_config_platform: process.platform === 'linux' ? 'darwin' : 'linux',
  });
  expect([status, stderr]).toEqual([
    1,
    expect.stringMatching(
      /^relora-server: a library does not run on this system \(.+\): Linux needs glibc 2\.29 or newer, or musl\n$/,
    ),
  ]);
});

it('says that a binary is missing for a system for which there is none', () => {
  const { status, stderr } = start({ npm_config_arch: 'riscv64' });
  expect([status, stderr]).toEqual([
    1,
    expect.stringMatching(
      /^relora-server: a package is missing \(No native build .*riscv64.*\): install again on this system.*\n$/,
    ),
  ]);
});

function start(variables: Record<string, string>) {
  const env = { ...process.env, RELORA_DATA_FOLDER: temporaryFolder(), ...variables };
  return spawnSync(process.execPath, [main], { env, encoding: 'utf8' });
}
