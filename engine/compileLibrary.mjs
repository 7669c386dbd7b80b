// Compiles a shared library with only the C++ compiler: no build system, no download. A file is compiled again only if it, a header, its
// flags or the compiler changed.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { systemName } from './systemName.mjs';

// No -march=native: a library runs on any CPU and chooses at run time. No -ffast-math: NaN and infinity must propagate, and sums keep their
// order; contraction is off so that fused multiply-adds occur only where they are written.
export const baseFlags = [
  ...['-std=c++20', '-O3', '-fPIC', '-fvisibility=hidden'],
  ...['-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math'],
  ...['-Wall', '-Wextra', '-Wno-psabi', '-pthread'],
  `-I${createRequire(import.meta.url)('node-api-headers').include_dir}`,
];

/** `build.mjs address` and `build.mjs thread` build instrumented libraries in a separate folder, for `npm run test:sanitize`. */
export const sanitizers = {
  address: ['-O1', '-g', '-fsanitize=address,undefined,float-cast-overflow', '-fno-sanitize-recover=all'],
  thread: ['-O1', '-g', '-fsanitize=thread'],
};

/** The flags of the requested sanitizer, if any. */
export function sanitizerFlags(name) {
  if (name !== undefined && !(name in sanitizers))
    fail(`Expected no argument or one of ${Object.keys(sanitizers).join(', ')}, got ${name}`);
  return sanitizers[name] ?? [];
}

export function fail(message) {
  console.error(message);
  process.exit(1);
}

export function findCompiler() {
  if (process.platform === 'win32') fail('The engine is not built on Windows: use WSL2 or Docker');
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

/** Files below `folder` with this extension, except in folders named `build`. */
export function listFiles(folder, extension) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(extension))
    .map((entry) => relative(folder, join(entry.parentPath ?? entry.path, entry.name)).replaceAll('\\', '/'))
    .filter((file) => !file.startsWith('build/'))
    .sort();
}

const hash = (...parts) => {
  const sum = createHash('sha256');
  for (const part of parts) sum.update(part).update('\0');
  return sum.digest('hex');
};

function run(command, args) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
    child.on('error', () => resolve(1));
    child.on('close', resolve);
  });
}

/**
 * `units`: { source, name, flags } relative to `root`; all of them depend on its headers. `what` names the library in messages, `note` is
 * appended to the line that says it was built. Does nothing if `target` is current. `system`: the target system, if not this one.
 */
export async function compileLibrary(library) {
  const { root, target, compiler, units, linkFlags = [], what, note = '', system = systemName() } = library;
  const buildDir = dirname(target);
  const headers = listFiles(root, '.h').map((file) => file + '\n' + readFileSync(join(root, file), 'utf8'));
  const common = hash(compiler.command, ...compiler.args, compiler.version, system, ...headers);
  const objects = units.map(({ source, name, flags }) => {
    const digest = hash(common, ...flags, readFileSync(join(root, source), 'utf8'));
    // The digest is part of the name, so an object that exists is current.
    return { source, flags, path: join(buildDir, `${name}.${digest.slice(0, 16)}.o`) };
  });
  const stamp = hash(...linkFlags, ...objects.map((object) => object.path));
  const stampFile = join(buildDir, 'stamp');
  if (existsSync(target) && existsSync(stampFile) && readFileSync(stampFile, 'utf8') === stamp) return;

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
  if (failures > 0) fail(`${what} was not built: ${failures} of ${objects.length} files failed to compile`);

  // Linked to another file and renamed, so that a running process keeps the file it has mapped; under the same name, which macOS records in
  // the file.
  const aside = join(buildDir, `link.${process.pid}`);
  mkdirSync(aside);
  const temporary = join(aside, basename(target));
  const undefinedSymbols = system.startsWith('darwin') ? ['-undefined', 'dynamic_lookup'] : [];
  const linkArgs = [
    ...['-shared', '-pthread', ...linkFlags, ...undefinedSymbols],
    ...[...objects.map((object) => object.path), '-o', temporary],
  ];
  if ((await run(compiler.command, [...compiler.args, ...linkArgs])) !== 0)
    fail(`${what} was not built: linking failed`);
  renameSync(temporary, target);
  rmdirSync(aside);
  writeFileSync(stampFile, stamp);

  const current = new Set(objects.map((object) => object.path));
  for (const file of readdirSync(buildDir)) {
    const path = join(buildDir, file);
    if (file.endsWith('.o') && !current.has(path)) rmSync(path, { force: true });
  }
  console.log(`Built ${relative(process.cwd(), target)} (${objects.length} files${note})`);
}
