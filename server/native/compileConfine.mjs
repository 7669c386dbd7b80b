// Compiles the program that confines children.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fail } from '@relora/engine/compileLibrary.mjs';

const source = join(dirname(fileURLToPath(import.meta.url)), 'confine.cpp');

/** Does nothing if `target` is current. */
export function compileConfine({ target, compiler, flags: more = [] }) {
  const flags = [
    ...['-std=c++20', '-O2', '-Wall', '-Wextra', '-fno-exceptions', '-fPIE', '-pie', '-Wl,--as-needed'],
    ...more,
  ];
  const sum = createHash('sha256')
    .update(compiler.version)
    .update([...compiler.args, ...flags].join(' '))
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
