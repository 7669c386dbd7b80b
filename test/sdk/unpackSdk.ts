import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const modules = fileURLToPath(new URL('../../node_modules/', import.meta.url));

/** Unpacks a packed SDK into the `node_modules` of a folder like an installation: with its declared dependencies and no others. */
export function unpackSdk(archive: string, folder: string, others: readonly string[] = []): void {
  const installed = join(folder, 'node_modules/@relora/sdk');
  mkdirSync(installed, { recursive: true });
  execFileSync('tar', ['xzf', archive, '--strip-components=1', '-C', installed]);
  const { dependencies } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
  };
  for (const name of [...Object.keys(dependencies), ...others]) {
    mkdirSync(dirname(join(folder, 'node_modules', name)), { recursive: true });
    symlinkSync(join(modules, name), join(folder, 'node_modules', name));
  }
}
