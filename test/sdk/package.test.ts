import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../e2e/tinyJob.js';
import { unpackSdk } from './unpackSdk.js';

const sdk = fileURLToPath(new URL('../../sdk/', import.meta.url));
const modules = fileURLToPath(new URL('../../node_modules/', import.meta.url));
const run = (file: string, args: string[], cwd: string) =>
  execFileSync(file, args, { cwd, encoding: 'utf8' });

test('the package, as it would be published, loads by import and by require, with types for both', () => {
  const folder = temporaryFolder();
  execFileSync(process.execPath, [join(sdk, 'build-cjs.mjs')]);
  run('npm', ['pack', '--loglevel=error', '--ignore-scripts', '--pack-destination', folder], sdk);
  // Its dependencies and nothing else: what is not declared is not found.
  unpackSdk(join(folder, 'relora-sdk-0.1.0.tgz'), folder, ['@types/node']);

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

  const typed = `import { ReloraClient, type JobEvent } from '@relora/sdk';
    export async function losses(client: ReloraClient): Promise<number[]> {
      const found: number[] = [];
      for await (const event of client.watch('jobs/x')) if (event.kind === 'step') found.push(event.step.loss);
      return found;
    }
    // @ts-expect-error -- the kind decides which field there is
    export const wrong = (event: JobEvent & { kind: 'state' }) => event.step.loss;`;
  for (const name of ['typed.mts', 'typed.cts']) writeFileSync(join(folder, name), typed);
  const tsc = join(modules, 'typescript/bin/tsc');
  const flags =
    '--noEmit --strict --module nodenext --target es2022 --lib es2023,esnext.disposable --types node --skipLibCheck';
  run(process.execPath, [tsc, 'typed.mts', 'typed.cts', ...flags.split(' ')], folder);
});
