import { spawnSync } from 'node:child_process';
import { expect, it } from 'vitest';
import { main } from '../e2e/serverProcess.js';
import { temporaryFolder } from './parts.js';

it('says what a system needs on which one of its libraries cannot be loaded', () => {
  // As if this system had the other library of C.
  const { glibcVersionRuntime } = (process.report.getReport() as { header: { glibcVersionRuntime?: string } })
    .header;
  const env = {
    ...process.env,
    LIBC: glibcVersionRuntime === undefined ? 'glibc' : 'musl',
    RELORA_DATA_FOLDER: temporaryFolder(),
  };
  const { status, stderr } = spawnSync(process.execPath, [main], { env, encoding: 'utf8' });
  expect([status, stderr]).toEqual([
    1,
    expect.stringMatching(
      /^relora-server: a library does not run on this system \(.+\): Linux needs glibc 2\.29 or newer, or musl\n$/,
    ),
  ]);
});
