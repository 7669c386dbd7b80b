// Compiles the native addon with the C++ compiler alone: no build system, no download. Each file is compiled again only when it,
// a header, its flags or the compiler changed. Run directly, or by `npm run build`.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(fileURLToPath(import.meta.url));

// `build.mjs address` and `build.mjs thread` build, in a folder of their own, an addon that watches itself: for
// `npm run test:sanitize`.
const sanitizers = {
  address: ['-O1', '-g', '-fsanitize=address,undefined,float-cast-overflow', '-fno-sanitize-recover=all'],
  thread: ['-O1', '-g', '-fsanitize=thread'],
};
const sanitizer = process.argv[2];
if (sanitizer !== undefined && !(sanitizer in sanitizers))
  fail(`Expected no argument or one of ${Object.keys(sanitizers).join(', ')}, got ${sanitizer}`);
const instrumentation = sanitizers[sanitizer] ?? [];
const buildDir = join(root, 'build', sanitizer ?? '');
const target = join(buildDir, 'relora.node');
const napiHeaders = createRequire(import.meta.url)('node-api-headers').include_dir;

// No -march=native: the addon runs on any CPU and chooses at run time. No -ffast-math: NaN and infinity must show, and sums keep
// their order; contraction is off so that a fused multiply-add stands only where it is written.
const flags = [
  ...[
    '-std=c++20',
    '-O3',
    '-fPIC',
    '-fvisibility=hidden',
    '-ffp-contract=off',
    '-fno-math-errno',
    '-fno-trapping-math',
  ],
  ...['-Wall', '-Wextra', '-Wno-psabi', '-pthread', `-I${napiHeaders}`],
  ...instrumentation,
];

// GCC moves vectors of eight bytes through MMX registers, after which the x87 arithmetic of whoever called gives NaN.
const noMmx = process.arch === 'x64' ? ['-mno-mmx'] : [];
const avx2 = [...noMmx, '-mavx2', '-mfma', '-mf16c'];
const avx512 = [...avx2, '-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq'];
const instructionSets = {
  portable: noMmx,
  ...(process.arch === 'x64' && {
    avx2,
    avx512,
    avx512bf16: [...avx512, '-mavx512bf16'],
    avx512vnni: [...avx512, '-mavx512vnni'],
    amx: [...avx512, '-mavx512bf16', '-mamx-tile', '-mamx-bf16', '-mamx-int8'],
  }),
};

/** Files compiled once for each of some sets in its own namespace; those of avx512 serve its extensions too. */
const setsOf = (source) => {
  const sets = {
    'gemm/kernel.cpp': ['portable', 'avx2', 'avx512'],
    'gemm/kernel_avx512bf16.cpp': ['avx512bf16'],
    'gemm/kernel_int8.cpp': ['portable', 'avx2', 'avx512vnni'],
    'gemm/kernel_amx.cpp': ['portable', 'amx'],
  }[source];
  if (sets === undefined && !source.startsWith('kernels/')) return [undefined];
  return (sets ?? ['portable', 'avx2', 'avx512']).filter((set) => set in instructionSets);
};

function fail(message) {
  console.error(message);
  process.exit(1);
}

const hash = (...parts) => {
  const sum = createHash('sha256');
  for (const part of parts) sum.update(part).update('\0');
  return sum.digest('hex');
};

function findCompiler() {
  const candidates = process.env.CXX ? [process.env.CXX] : ['g++', 'clang++', 'c++'];
  for (const candidate of candidates) {
    const [command, ...args] = candidate.split(/\s+/).filter(Boolean);
    const { status, stdout } = spawnSync(command, [...args, '--version'], { encoding: 'utf8' });
    if (status === 0) return { command, args, version: stdout };
  }
  return fail(
    `No C++ compiler found (tried ${candidates.join(', ')}). Install g++ 11 or newer (Debian, Ubuntu: apt install g++; ` +
      'Fedora: dnf install gcc-c++) or clang 14 or newer (macOS: xcode-select --install), or set CXX.',
  );
}

function listFiles(extension) {
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(extension))
    .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name)).replaceAll('\\', '/'))
    .filter((file) => !file.startsWith('build/'))
    .sort();
}

function run(command, args) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
    child.on('error', () => resolve(1));
    child.on('close', resolve);
  });
}

const compiler = findCompiler();
const headers = listFiles('.h').map((file) => file + '\n' + readFileSync(join(root, file), 'utf8'));
const common = hash(compiler.command, ...compiler.args, compiler.version, process.arch, ...headers);

const objects = listFiles('.cpp').flatMap((source) =>
  setsOf(source).map((set) => {
    const own = set === undefined ? flags : [...flags, ...instructionSets[set], `-DRELORA_ISA=${set}`];
    const digest = hash(common, ...own, readFileSync(join(root, source), 'utf8'));
    const name = `${source.replaceAll('/', '.').replace(/\.cpp$/, '')}${set === undefined ? '' : `.${set}`}`;
    // The digest is part of the name, so an object that exists is current.
    return { source, flags: own, name, path: join(buildDir, `${name}.${digest.slice(0, 16)}.o`) };
  }),
);
const stamp = hash(...objects.map((object) => object.path));
const stampFile = join(buildDir, 'stamp');

const isCurrent = existsSync(target) && existsSync(stampFile) && readFileSync(stampFile, 'utf8') === stamp;
if (isCurrent) process.exit(0);

mkdirSync(buildDir, { recursive: true });
const pending = objects.filter((object) => !existsSync(object.path));
let failures = 0;
const compileNext = async () => {
  for (let object = pending.shift(); object !== undefined; object = pending.shift()) {
    const temporary = `${object.path}.${process.pid}`;
    const args = [...compiler.args, ...object.flags, '-c', join(root, object.source), '-o', temporary];
    if ((await run(compiler.command, args)) === 0) renameSync(temporary, object.path);
    else failures++;
  }
};
await Promise.all(Array.from({ length: availableParallelism() }, compileNext));
if (failures > 0)
  fail(`The native addon was not built: ${failures} of ${objects.length} files failed to compile`);

// Linked aside and renamed, so that a running process keeps the file it has mapped.
const temporary = `${target}.${process.pid}`;
const undefinedSymbols = process.platform === 'darwin' ? ['-undefined', 'dynamic_lookup'] : [];
const linkArgs = [
  '-shared',
  '-pthread',
  ...instrumentation,
  ...undefinedSymbols,
  ...objects.map((object) => object.path),
  '-o',
  temporary,
];
if ((await run(compiler.command, [...compiler.args, ...linkArgs])) !== 0)
  fail('The native addon was not built: linking failed');
renameSync(temporary, target);
writeFileSync(stampFile, stamp);

const current = new Set(objects.map((object) => object.path));
for (const file of readdirSync(buildDir)) {
  const path = join(buildDir, file);
  if (file.endsWith('.o') && !current.has(path)) rmSync(path, { force: true });
}
console.log(
  `Built ${relative(process.cwd(), target)} (${objects.length} files, ${Object.keys(instructionSets).join(', ')})`,
);
