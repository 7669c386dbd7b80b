import { spawnSync } from 'node:child_process';
import { cpSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { temporaryFolder } from './e2e/tinyJob.js';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Output of `buf breaking` for the contract, after a change to one of its files, against the released one. */
function breaking(file: string, change: (text: string) => string): string {
  const folder = temporaryFolder();
  for (const name of ['proto', 'buf.yaml']) cpSync(join(root, name), join(folder, name), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
  const path = join(folder, 'proto/relora/v1', file);
  const before = readFileSync(path, 'utf8');
  const after = change(before);
  writeFileSync(path, after);
  const buf = join(root, 'node_modules/@bufbuild/buf/bin/buf');
  const args = [buf, 'breaking', 'proto', '--against', 'proto/released.binpb'];
  const { stdout } = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' });
  return stdout;
}

it('the contract holds what 0.1.0 released', () => {
  expect(breaking('job.proto', (text) => text)).toBe('');
});

it.each([
  { what: 'RPC "RestartJob"', file: 'training_service.proto', line: /^ {2}rpc RestartJob\([^}]*\}\n/m },
  { what: 'RPC "CompareJobs"', file: 'training_service.proto', line: /^ {2}rpc CompareJobs\(.*\n/m },
  { what: 'RPC "ListWeights"', file: 'weights_service.proto', line: /^ {2}rpc ListWeights\(.*\n/m },
  {
    what: 'field "20" with name "token_count"',
    file: 'job.proto',
    line: /^ {2}optional int64 token_count = .*\n/m,
  },
])('the guard of the contract notices that $what is gone', ({ what, file, line }) => {
  expect(breaking(file, (text) => text.replace(line, ''))).toContain(what);
});
