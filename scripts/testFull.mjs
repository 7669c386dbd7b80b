// `npm run test:full`: what takes too long, or needs too much, for every change. It makes the Python environment itself (in
// .relora/test-python), then runs the exchange with transformers, PEFT, gguf and llama.cpp, a thousand random messages to each method,
// and the kernels under the sanitizers. What came of it is written to test/full-report.md. Words after it name the parts to run.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const environment = join(root, '.relora', 'test-python');
const python = process.env.RELORA_TEST_PYTHON ?? join(environment, 'bin', 'python');
const packages = ['torch', 'transformers', 'peft', 'gguf', 'safetensors', 'numpy'];

const vitest = (...files) => ['node_modules/vitest/vitest.mjs', 'run', ...files];
const parts = [
  {
    name: 'interchange',
    what: 'exports read by transformers, PEFT and gguf, models of transformers read here',
    prepare: makePython,
    command: vitest(
      'test/engine/interchange.python.test.ts',
      'test/engine/interchange.llamaCpp.test.ts',
      'test/engine/transformers.test.ts',
      'test/engine/model.companions.test.ts',
    ),
    env: { RELORA_TEST_PYTHON: python },
  },
  {
    name: 'tensorflow',
    what: 'the device tensorflow: every call, whole runs and a job of a server, on the library of its wheel',
    prepare: setUpTensorflow,
    command: vitest(
      'test/engine/conformance',
      'test/engine/device.test.ts',
      'test/e2e/tensorflowServer.test.ts',
    ),
    env: {},
  },
  {
    name: 'fuzz',
    what: '1,000 random messages to each method',
    command: vitest('test/server/grpc.fuzz.test.ts'),
    env: { TEST_FUZZ_MESSAGES: '1000' },
  },
  {
    name: 'sanitizers',
    what: 'the kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer',
    command: ['scripts/testSanitized.mjs'],
    env: {},
  },
];

const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !parts.some((part) => part.name === name));
if (unknown.length > 0) {
  console.error(`Expected some of ${parts.map(({ name }) => name).join(', ')}, got ${unknown.join(', ')}`);
  process.exit(2);
}
const rows = parts.filter(({ name }) => asked.length === 0 || asked.includes(name)).map(run);
writeFileSync(join(root, 'test', 'full-report.md'), report(rows));
if (rows.some(({ outcome }) => !outcome.startsWith('passed'))) process.exitCode = 1;

function run({ name, what, prepare, command, env }) {
  console.log(`\n${name}: ${what}`);
  const began = performance.now();
  const problem = prepare?.();
  const { status, stdout } = spawnSync(process.execPath, command, {
    cwd: root,
    env: { ...process.env, ...env, NO_COLOR: '1' },
    stdio: ['ignore', 'pipe', 'inherit'],
    maxBuffer: 1 << 28,
  });
  process.stdout.write(stdout);
  const counts = [...stdout.toString().matchAll(/^ *Tests +(.*?) *\(\d+\)$/gm)].map(([, text]) =>
    text.trim(),
  );
  const outcome = `${status === 0 ? 'passed' : 'FAILED'}${problem === undefined ? '' : ` (${problem})`}`;
  return { name, what, outcome, counts: counts.join('; '), seconds: (performance.now() - began) / 1000 };
}

/** A virtual environment with what the exports are read by; what cannot be had is said, and its tests are skipped. */
function makePython() {
  if (process.env.RELORA_TEST_PYTHON !== undefined) return undefined;
  if (!existsSync(python)) execFileSync('python3', ['-m', 'venv', environment], { stdio: 'inherit' });
  const { status } = spawnSync(python, ['-m', 'pip', 'install', '--quiet', ...packages], {
    stdio: 'inherit',
  });
  return status === 0 ? undefined : 'packages of Python cannot be installed: their tests were skipped';
}

function setUpTensorflow() {
  const { status } = spawnSync(process.execPath, ['engine/tensorflow/setup.mjs'], {
    cwd: root,
    stdio: 'inherit',
  });
  return status === 0 ? undefined : 'TensorFlow cannot be set up: its tests were skipped';
}

function report(rows) {
  const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], {
    cwd: root,
    encoding: 'utf8',
  }).trim();
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const versions = spawnSync(
    python,
    [
      '-c',
      `import importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in ${JSON.stringify(packages)}))`,
    ],
    { encoding: 'utf8' },
  );
  const lines = rows.map(
    ({ name, what, outcome, counts, seconds }) =>
      `| ${name} | ${what} | ${outcome} | ${counts} | ${seconds.toFixed(0)} |`,
  );
  return `# The long tests

Written by \`npm run test:full\`: version ${version} after commit ${commit}, ${new Date().toISOString().slice(0, 10)}, Node ${process.version}, ${cpus()[0].model}, ${cpus().length} processors.
Python's packages: ${versions.status === 0 ? versions.stdout.trim() : 'none'}.

| part | what | outcome | tests | seconds |
| --- | --- | --- | --- | --- |
${lines.join('\n')}
`;
}
