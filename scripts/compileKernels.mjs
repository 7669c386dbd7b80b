// Compiles every kernel for every architecture with NVRTC, which needs no card, and writes the table of registers and shared memory. Exits
// with status 1 if a kernel does not compile, spills registers or causes a warning.
//   NVRTC_ENVIRONMENT=FOLDER node scripts/compileKernels.mjs [--slice]
// FOLDER holds nvidia-cuda-nvrtc or nvidia-cuda-nvrtc-cu12, or both: a Python virtual environment, or what `pip install --target` filled.
// With --slice: one variant of each source, the oldest architecture by the oldest compiler and the newest ones by the newest, and no table.
// Results for unchanged sources are cached.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  architectures,
  kernelCompiler,
  kernelVariants,
  loadCudaAddon,
  packageFolders,
  readCompilerLog,
  readKernelFile,
  readKernelHeaders,
  sitesOf,
} from '@relora/engine/cuda';

const isSlice = process.argv.includes('--slice');
const environment = process.env.NVRTC_ENVIRONMENT;
if (environment === undefined) fail('NVRTC_ENVIRONMENT names no folder with nvidia-cuda-nvrtc');
const libraries = [environment, ...sitesOf(environment)]
  .flatMap(packageFolders)
  .flatMap((folder) => ['libnvrtc.so.13', 'libnvrtc.so.12'].map((name) => join(folder, name)))
  .filter((path) => existsSync(path));
if (libraries.length === 0) fail(`${environment} holds no libnvrtc.so.12 or libnvrtc.so.13`);

const files = new Map();
const variants = kernelVariants().filter(({ file }) => {
  const isFirst = !files.has(file);
  if (isFirst) files.set(file, readKernelFile(file));
  return isFirst || !isSlice;
});
const addon = loadCudaAddon();
const headers = readKernelHeaders();
const logFolder = fileURLToPath(new URL('../engine/cuda/build/logs', import.meta.url));
const rows = [];
const faults = [];
for (const library of libraries) {
  const compiler = kernelCompiler(addon, library, null);
  for (const { file, definitions } of variants) {
    for (const architecture of isSlice ? slice(library) : architectures) {
      const name = [`${file}.cu`, ...definitions, architecture, `NVRTC ${compiler.version}`].join(' ');
      try {
        const { kernels, warnings } = compiled(compiler, files.get(file), { architecture, definitions });
        faults.push(...warnings.map((warning) => `${name}: ${warning}`));
        const known = files.get(file).kernels.map((kernel) => kernel.name);
        if (known.some((kernel) => !kernels.some((of) => of.kernel === kernel)))
          faults.push(`${name}: the log does not name every kernel`);
        for (const of of kernels) {
          rows.push({ ...of, variant: definitions.join(' '), architecture, compiler: compiler.version });
          if (of.spilledBytes > 0) faults.push(`${name}: ${of.kernel} spills ${of.spilledBytes} bytes`);
        }
      } catch (error) {
        faults.push(error.message);
      }
    }
  }
}
for (const fault of faults) console.error(fault);
console.log(`${rows.length} kernels compiled, ${faults.length} faults`);
if (!isSlice) writeTable();
process.exit(faults.length === 0 ? 0 : 1);

/** Architectures of the slice: a pair of compiler and architecture takes half a minute. */
function slice(library) {
  const oldest = library === libraries.at(-1) ? ['sm_80'] : [];
  return library === libraries[0] ? [...oldest, 'sm_90a', 'sm_120'] : oldest;
}

/** The compiler's report on the kernels, cached by everything that it depends on. */
function compiled(compiler, file, target) {
  const key = createHash('sha256')
    .update(JSON.stringify([compiler.version, file, headersOf(file.source), target]))
    .digest('hex');
  const path = join(logFolder, `${key}.json`);
  if (existsSync(path)) return JSON.parse(readFileSync(path, 'utf8'));
  const found = readCompilerLog(compiler.compile(file, target).log);
  mkdirSync(logFolder, { recursive: true });
  writeFileSync(path, JSON.stringify(found));
  return found;
}

/** Sources of the headers that a source includes, directly or indirectly. */
function headersOf(source, found = new Map()) {
  for (const [, name] of source.matchAll(/^#include "(.*)"$/gm)) {
    const text = headers.texts[headers.names.indexOf(name)];
    if (text === undefined || found.has(name)) continue;
    found.set(name, text);
    headersOf(text, found);
  }
  return [...found];
}

function writeTable() {
  const versions = [...new Set(rows.map((row) => row.compiler))];
  const names = [...new Set(rows.map((row) => `${row.kernel}|${row.variant}`))];
  const lines = names.map((key) => {
    const [kernel, variant] = key.split('|');
    const of = rows.filter((row) => row.kernel === kernel && row.variant === variant);
    const cells = architectures.map((architecture) =>
      versions
        .map((version) => {
          const row = of.find((each) => each.architecture === architecture && each.compiler === version);
          return row === undefined ? '–' : row.registers;
        })
        .join(' / '),
    );
    const shared = Math.max(...of.map((row) => row.sharedBytes));
    const spilled = Math.max(...of.map((row) => row.spilledBytes));
    return `| ${kernel} | ${variant} | ${cells.join(' | ')} | ${shared} | ${spilled} |`;
  });
  const text = [
    '# Kernels for NVIDIA cards, compiled',
    '',
    `Registers of each thread by NVRTC ${versions.join(' / ')}, static shared memory and spilled registers in bytes (the most of all`,
    'architectures). Made by `node scripts/compileKernels.mjs`, which needs no card.',
    '',
    `| kernel | variant | ${architectures.join(' | ')} | shared | spilled |`,
    `| --- | --- | ${architectures.map(() => '---').join(' | ')} | --- | --- |`,
    ...lines,
    '',
  ].join('\n');
  writeFileSync(fileURLToPath(new URL('../bench/results/kernels.md', import.meta.url)), text);
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
