// Compiles the program that confines children. Linux alone has what it needs, and it knows two kinds of processors. Run directly, or by `npm run build`.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fail, findCompiler } from '../../engine/compileLibrary.mjs';

const root = dirname(fileURLToPath(import.meta.url));
if (process.platform === 'linux' && ['x64', 'arm64'].includes(process.arch))
  compile(join(root, 'confine.cpp'), join(root, 'build', 'confine'));

function compile(source, target) {
  const compiler = findCompiler();
  const flags = [
    '-std=c++20',
    '-O2',
    '-Wall',
    '-Wextra',
    '-fno-exceptions',
    '-fPIE',
    '-pie',
    '-Wl,--as-needed',
  ];
  const sum = createHash('sha256')
    .update(compiler.version)
    .update(flags.join(' '))
    .update(readFileSync(source));
  const stamp = sum.digest('hex');
  const stampFile = `${target}.stamp`;
  if (existsSync(target) && existsSync(stampFile) && readFileSync(stampFile, 'utf8') === stamp) return;
  mkdirSync(dirname(target), { recursive: true });
  const temporary = `${target}.${process.pid}`;
  try {
    const args = [...compiler.args, ...flags, source, '-o', temporary];
    execFileSync(compiler.command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  } catch {
    fail('The program that confines children was not built');
  }
  renameSync(temporary, target);
  writeFileSync(stampFile, stamp);
  console.log(`Built ${relative(process.cwd(), target)}`);
}
