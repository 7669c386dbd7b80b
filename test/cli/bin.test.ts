import { execFileSync, spawnSync } from 'node:child_process';
import { accessSync, constants, cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../e2e/tinyJob.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

const commands = ['cli', 'server'].flatMap((name) => {
  const { bin } = JSON.parse(readFileSync(join(root, name, 'package.json'), 'utf8')) as {
    bin: Record<string, string>;
  };
  return Object.entries(bin).map(([command, path]) => ({ command, path: join(name, path) }));
});

// npm does not link a command whose file is built only after the installation.
test.each(commands)(
  '$command is a file that is there before the build, and npm has linked it',
  ({ command, path }) => {
    expect(path).not.toMatch(/\/(dist|build)\//);
    accessSync(join(root, path), constants.X_OK);
    const linked = join(root, 'node_modules/.bin', command);
    expect(execFileSync(linked, ['--version'], { encoding: 'utf8' })).toMatch(/^\d+\.\d+\.\d+\n$/);
  },
);

test.each(commands)('$command says what to run where nothing is built', ({ command, path }) => {
  const folder = temporaryFolder();
  cpSync(join(root, path), join(folder, path));
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  const { status, stderr } = spawnSync(process.execPath, [join(folder, path)], { encoding: 'utf8' });
  expect([status, stderr]).toEqual([
    1,
    `${command} is not built yet: run "npm run setup" in the checkout first\n`,
  ]);
});
