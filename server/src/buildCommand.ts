import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const buildUsage = 'relora-server build';

/**
 * Compiles native code where no binary is published, or a newer compiler is wanted: the packages have the sources, and a build of an
 * installation goes before its package of binaries. Whether all of it was made; what went wrong stands on stderr.
 */
export function compileNative(): boolean {
  const engine = dirname(createRequire(import.meta.url).resolve('@relora/engine/package.json'));
  const server = fileURLToPath(new URL('..', import.meta.url));
  const scripts = [
    join(engine, 'native/build.mjs'),
    join(engine, 'cuda/build.mjs'),
    join(server, 'native/build.mjs'),
  ];
  // The installation is everybody's to run: files that only who compiled it may read would be of no use.
  process.umask(0o022);
  return scripts.every((script) => spawnSync(process.execPath, [script], { stdio: 'inherit' }).status === 0);
}
