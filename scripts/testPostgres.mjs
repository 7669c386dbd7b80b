/**
 * The tests of the server and the end-to-end tests with PostgreSQL as every store: `npm run test:postgres -- [--slice] [arguments of
 * vitest]`. `--slice` runs what CI has time for: the test files about stores that do not already run with both kinds. Without PostgreSQL
 * nothing runs, and every test counts as skipped, also in a report requested by --outputFile.json=FILE.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const cwd = fileURLToPath(new URL('..', import.meta.url));
const slice = [
  'test/server/supervisor.test.ts',
  'test/server/exports.test.ts',
  'test/server/artifacts.test.ts',
  'test/server/datasets.test.ts',
  'test/server/weights.test.ts',
  'test/server/tenants.test.ts',
  'test/server/watchJobs.test.ts',
  'test/e2e/killServer.test.ts',
];

const given = process.argv.slice(2);
const isSlice = given.includes('--slice');
const args = given.filter((arg) => arg !== '--slice');
const named = args.filter((arg) => !arg.startsWith('-'));
const files = isSlice ? slice : named.length > 0 ? [] : ['test/server', 'test/e2e'];

const root = '/usr/lib/postgresql';
const isInstalled =
  existsSync(root) && readdirSync(root).some((version) => existsSync(join(root, version, 'bin/initdb')));
if (isInstalled) {
  const env = { ...process.env, TEST_STORE: 'PostgreSQL' };
  const { status } = spawnSync('npx', ['vitest', 'run', ...files, ...args], { cwd, env, stdio: 'inherit' });
  process.exit(status ?? 1);
}

const list = spawnSync('npx', ['vitest', 'list', ...files, ...named, '--json'], {
  cwd,
  encoding: 'utf8',
  maxBuffer: 2 ** 26,
});
const count = JSON.parse(list.stdout).length;
console.log(`PostgreSQL is not installed: ${count} tests are skipped`);
const report = args.find((arg) => arg.startsWith('--outputFile.json='))?.split('=')[1];
const counts = { numPassedTests: 0, numFailedTests: 0, numPendingTests: count, numTodoTests: 0 };
if (report !== undefined) writeFileSync(report, JSON.stringify({ ...counts, testResults: [] }));
