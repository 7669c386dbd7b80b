// `npm run test:sanitize`: the tests of the native kernels with an instrumented addon, on every instruction set of this machine.
// AddressSanitizer detects accesses outside of allocations (arrays of JavaScript are allocations too), UndefinedBehaviorSanitizer undefined
// behavior of C++, ThreadSanitizer data races. Other test files may be given as arguments, and a single sanitizer by --sanitizer. Exits
// with status 1 on any finding or failed test.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values, positionals: named } = parseArgs({
  allowPositionals: true,
  options: { sanitizer: { type: 'string' } },
});
const tests = named.length > 0 ? named : ['test/engine/native', 'test/engine/conformance'];

const sanitizers = [
  {
    name: 'address',
    runtime: 'libasan.so',
    // Node does not free its memory at exit, so leaks are not checked.
    options: (log) => ({ ASAN_OPTIONS: `detect_leaks=0:${log}`, UBSAN_OPTIONS: 'print_stacktrace=1' }),
    isOurs: () => true,
    // Kernels for cards run on the model of a card, whose memory is host memory; also in a job of a server.
    more: ['test/cuda', 'test/e2e/cardServer.test.ts'],
  },
  {
    name: 'thread',
    runtime: 'libtsan.so',
    options: (log) => ({ TSAN_OPTIONS: `exitcode=0:${log}` }),
    // Node and the test runner are not instrumented: reports about their own threads are meaningless.
    isOurs: (report) => report.includes('relora.node'),
  },
];

const asked = sanitizers.filter(({ name }) => values.sanitizer === undefined || values.sanitizer === name);
if (asked.length === 0)
  fail(`Expected ${sanitizers.map(({ name }) => name).join(' or ')}, got ${values.sanitizer}`);
const failed = asked.filter((sanitizer) => !passes(sanitizer));
if (failed.length > 0) fail(`Failed: ${failed.map(({ name }) => name).join(', ')}`);

function passes({ name, runtime, options, isOurs, more = [] }) {
  console.log(`\nThe ${name} sanitizer`);
  execFileSync(process.execPath, ['engine/native/build.mjs', name], { cwd: root, stdio: 'inherit' });
  // Reports go to files, since the output of some processes is not read. Undefined behavior ends a process at once, with a line on its
  // standard error.
  const folder = mkdtempSync(join(tmpdir(), 'relora-sanitize-'));
  const { status } = spawnSync(
    process.execPath,
    [
      'node_modules/vitest/vitest.mjs',
      'run',
      ...tests,
      ...(named.length > 0 ? [] : more),
      '--maxWorkers=1',
      '--testTimeout=300000',
    ],
    {
      cwd: root,
      stdio: 'inherit',
      env: {
        ...process.env,
        ...options(`log_path=${join(folder, 'report')}`),
        TEST_SANITIZER: name,
        LD_PRELOAD: findRuntime(runtime),
        NODE_OPTIONS: `--require ${JSON.stringify(join(root, 'scripts', 'useSanitizedAddon.cjs'))}`,
      },
    },
  );
  const findings = readdirSync(folder)
    .flatMap((file) => readFileSync(join(folder, file), 'utf8').split(/^={10,}$/m))
    .filter((report) => report.trim() !== '' && isOurs(report));
  rmSync(folder, { recursive: true });
  for (const finding of findings) console.error(finding);
  console.log(
    `The ${name} sanitizer: ${findings.length} reports, tests ${status === 0 ? 'passed' : 'failed'}`,
  );
  return findings.length === 0 && status === 0;
}

/** The library that has to be loaded before all others. */
function findRuntime(name) {
  const compiler = process.env.CXX ?? 'g++';
  const path = execFileSync(compiler, [`-print-file-name=${name}`], { encoding: 'utf8' }).trim();
  // If the compiler lacks this file, it returns the name unchanged.
  if (!existsSync(path))
    fail(`${compiler} has no ${name}: the sanitizers need GCC with its sanitizer libraries`);
  return path;
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
