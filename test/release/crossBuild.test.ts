import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { readBinary } from '@relora/engine/binaries';
import { problemsOf } from '../../scripts/release/checkBinary.mjs';
import { digestOf } from '../../scripts/release/pack.mjs';
import { targets, zigVersion } from '../../scripts/release/targets.mjs';
import { temporaryFolder } from '../e2e/tinyJob.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const hasZig = (process.env.ZIG ? [process.env.ZIG] : ['zig', 'python3 -m ziglang']).some((candidate) => {
  const [command, ...args] = candidate.split(' ') as [string, ...string[]];
  return spawnSync(command, [...args, 'version'], { encoding: 'utf8' }).stdout?.trim() === zigVersion;
});

/** Whether everything is compiled: minutes for a compiler that begins with nothing (`npm run test:full -- release`). */
const whole = process.env.TEST_CROSS_BUILD === 'whole';

/** Compiles files of a target from a checkout; the compiler's messages go to stderr. */
function compile(checkout: string, name: string, files: string[], folder: string): Record<string, string> {
  const module = pathToFileURL(join(checkout, 'scripts/release/compile.mjs')).href;
  const script = `import { compileTarget, findZig } from ${JSON.stringify(module)};
    const target = ${JSON.stringify(targets.find((target) => target.name === name))};
    const made = await compileTarget({ ...target, files: ${JSON.stringify(files)} }, { folder: ${JSON.stringify(folder)}, zig: findZig() });
    console.log('\\n' + JSON.stringify(made));`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', script], {
    ...{ cwd: checkout, encoding: 'utf8' },
  });
  expect([status, stderr]).toEqual([0, '']); // also requires that there are no warnings
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as Record<string, string>;
}

describe.skipIf(!hasZig)(
  `binaries for other systems (needs Zig ${zigVersion}: pip install ziglang, or ZIG)`,
  () => {
    it.skipIf(!whole)(
      'for macOS on ARM compile and link without a warning, and ask nothing unusual of a system',
      () => {
        // Kept, so that only changed files are compiled again.
        const folder = join(tmpdir(), 'relora-release-build');
        const { 'relora.node': path } = compile(root, 'darwin-arm64', ['relora.node'], folder);
        expect(
          problemsOf(
            path!,
            targets.find(({ name }) => name === 'darwin-arm64')!,
          ),
        ).toEqual([]);
        expect(readBinary(readFileSync(path!))).toMatchObject({
          os: 'darwin',
          arch: 'arm64',
          macosMin: '13.0',
        });
      },
    );

    it('are the same bytes whoever compiles them, and wherever', () => {
      const files = whole ? ['relora_cuda.node', 'confine'] : ['confine'];
      const made = ['one', 'another place'].map((name) => {
        const checkout = join(temporaryFolder(), name);
        mkdirSync(join(checkout, 'server'), { recursive: true });
        for (const part of ['engine/native', 'engine/cuda', 'server/native'])
          cpSync(join(root, part), join(checkout, part), {
            ...{ recursive: true, filter: (source: string) => !source.endsWith('/build') },
          });
        for (const part of ['engine/compileLibrary.mjs', 'engine/systemName.mjs', 'scripts/release'])
          cpSync(join(root, part), join(checkout, part), { recursive: true });
        symlinkSync(join(root, 'node_modules'), join(checkout, 'node_modules'));
        // The engine's folder without what the compiler does not read; only its package.json is needed.
        cpSync(join(root, 'engine/package.json'), join(checkout, 'engine/package.json'));
        const binaries = compile(checkout, 'linux-x64', files, join(checkout, 'out'));
        for (const path of Object.values(binaries)) {
          expect(
            problemsOf(
              path,
              targets.find(({ name: each }) => each === 'linux-x64')!,
            ),
          ).toEqual([]);
          expect(execFileSync('strings', ['-n', '8', path], { encoding: 'utf8' })).not.toContain(checkout);
        }
        return files.map((file) => digestOf(binaries[file]!));
      });
      expect(made[0]).toEqual(made[1]);
    });
  },
);
