import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const buildUsage = 'relora-server build';

/**
 * Compiles the native code, where no binary is published or a newer compiler is wanted: the packages include the sources, and a build made
 * here takes precedence over the package of binaries. Returns whether everything was compiled; errors go to stderr.
 */
export function compileNative(): boolean {
  const engine = dirname(createRequire(import.meta.url).resolve('@relora/engine/package.json'));
  const server = fileURLToPath(new URL('..', import.meta.url));
  const scripts = [
    join(engine, 'native/build.mjs'),
    join(engine, 'cuda/build.mjs'),
    join(server, 'native/build.mjs'),
  ];
  // Everybody may run the installation, so files that only the user who compiled them can read would be of no use.
  process.umask(0o022);
  return scripts.every((script) => spawnSync(process.execPath, [script], { stdio: 'inherit' }).status === 0);
}
