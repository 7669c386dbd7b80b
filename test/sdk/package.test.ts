import { checkPackage, createPackageFromTarballData } from '@arethetypeswrong/core';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../e2e/tinyJob.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const modules = join(root, 'node_modules');
const run = (file: string, args: string[], cwd: string) =>
  execFileSync(file, args, { cwd, encoding: 'utf8' });

/** Packs a package of the workspace as for publishing. */
function pack(name: string) {
  const folder = temporaryFolder();
  execFileSync(process.execPath, [join(root, 'sdk/build-cjs.mjs')]);
  const flags = ['--loglevel=error', '--ignore-scripts', '--pack-destination', folder];
  const file = run('npm', ['pack', ...flags], join(root, name)).trim();
  return { folder, path: join(folder, file), tarball: readFileSync(join(folder, file)) };
}

test.each(['sdk', 'cli', 'server', 'engine', 'page'])(
  'the package of %s is whole, and its entries are there',
  async (name) => {
    const { folder, path, tarball } = pack(name);
    const { buffer, byteOffset, byteLength } = tarball;
    const content = (buffer as ArrayBuffer).slice(byteOffset, byteOffset + byteLength);
    const { messages, pkg } = await publint({ pack: { tarball: content }, strict: true });
    expect(messages.map((message) => formatMessage(message, pkg, { color: false }))).toEqual([]);

    run('tar', ['xzf', path], folder);
    const installed = join(folder, 'package');
    for (const file of ['README.md', 'LICENSE']) expect(existsSync(join(installed, file)), file).toBe(true);
    expect(readFileSync(join(installed, 'LICENSE'), 'utf8')).toBe(
      readFileSync(join(root, 'LICENSE'), 'utf8'),
    );
    // Source maps let a debugger find the source of every line.
    const maps = readdirSync(join(installed, 'dist'), { recursive: true, encoding: 'utf8' }).filter((each) =>
      each.endsWith('.js.map'),
    );
    expect(maps.length).toBeGreaterThan(10);
    const missing = maps.filter((map) => {
      const at = join(installed, 'dist', map);
      const { sources } = JSON.parse(readFileSync(at, 'utf8')) as { sources: string[] };
      return !sources.every((source) => existsSync(join(dirname(at), source)));
    });
    expect(missing).toEqual([]);
  },
);

test('the types of the SDK are right for every way to resolve them', async () => {
  const result = await checkPackage(createPackageFromTarballData(new Uint8Array(pack('sdk').tarball)));
  expect(result).toMatchObject({ types: { kind: 'included' }, problems: [] });
});

test('the SDK as it would be published loads by import and by require, with types for each', () => {
  const { folder, path } = pack('sdk');
  const installed = join(folder, 'node_modules/@relora/sdk');
  mkdirSync(installed, { recursive: true });
  run('tar', ['xzf', path, '--strip-components=1', '-C', installed], folder);
  const { dependencies } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
  };
  // Only its declared dependencies: undeclared ones are not found.
  for (const name of [...Object.keys(dependencies), '@types/node']) {
    mkdirSync(dirname(join(folder, 'node_modules', name)), { recursive: true });
    symlinkSync(join(modules, name), join(folder, 'node_modules', name));
  }

  const use = `const client = new ReloraClient(); client.close(); console.log(typeof parseJobSpec, JobSpec.fromPartial({}).dataset === '', JobState.RUNNING);`;
  const names = '{ ReloraClient, JobState, parseJobSpec }';
  const sources = {
    'esm.mjs': `import ${names} from '@relora/sdk'; import { JobSpec } from '@relora/sdk/contract'; ${use}`,
    'cjs.cjs': `const ${names} = require('@relora/sdk'); const { JobSpec } = require('@relora/sdk/contract'); ${use}`,
  };
  for (const [name, source] of Object.entries(sources)) {
    writeFileSync(join(folder, name), source);
    expect(run(process.execPath, [name], folder)).toBe('function true JOB_STATE_RUNNING\n');
  }

  // A library that requires the SDK throws errors that a program that imports it can catch.
  const both = `import * as imported from '@relora/sdk'; import { createRequire } from 'node:module';
    const required = createRequire(import.meta.url)('@relora/sdk');
    const error = new required.JobFailedError('x');
    console.log(imported.ReloraError === required.ReloraError, imported.isReloraError(error), error instanceof imported.ReloraError,
      error instanceof imported.JobFailedError, error instanceof imported.IntegrityError, imported.isReloraError(new Error('x')));`;
  writeFileSync(join(folder, 'both.mjs'), both);
  expect(run(process.execPath, ['both.mjs'], folder)).toBe('false true true true false false\n');

  const typed = `import { isReloraError, ReloraClient, type JobEvent } from '@relora/sdk';
    import type { JobSpec } from '@relora/sdk/contract';
    export async function losses(client: ReloraClient, spec: JobSpec): Promise<number[]> {
      const found: number[] = [];
      const job = await client.createJob(spec);
      for await (const event of client.watch(job.name)) if (event.kind === 'step') found.push(event.step.loss);
      return found;
    }
    export const codeOf = (error: unknown) => (isReloraError(error) ? error.code : undefined);
    // @ts-expect-error -- the kind decides which field there is
    export const wrong = (event: JobEvent & { kind: 'state' }) => event.step.loss;`;
  for (const name of ['typed.mts', 'typed.cts', 'typed.ts']) writeFileSync(join(folder, name), typed);
  const tsc = join(modules, 'typescript/bin/tsc');
  const check = (files: string[], flags: string) =>
    run(
      process.execPath,
      [tsc, ...files, '--noEmit', '--strict', '--types', 'node', ...flags.split(' ')],
      folder,
    );
  check(['typed.mts', 'typed.cts'], '--module nodenext --target es2022 --skipLibCheck');
  // Older projects: package.json's exports are ignored, and the standard library is older.
  check(['typed.ts'], '--module commonjs --moduleResolution node10 --target es2020 --lib es2020');
});
