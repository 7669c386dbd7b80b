#!/usr/bin/env node
import { hearSignals } from './signals.js';

// Checked before loading anything that may be missing on a system without a server.
if (process.platform === 'win32') {
  process.stderr.write(
    'relora-server: the server does not run on Windows: use WSL2 or Docker (SDK and CLI run there)\n',
  );
  process.exit(2);
}

// Container runtimes run this every few seconds, so it loads nothing else.
if (process.argv[2] === 'health') await (await import('./admin/healthCommand.js')).healthCommand();

// Listens for signals before loading the rest, which takes longer than a container runtime may wait: the kernel drops signals that the
// first process of a container does not listen for.
const signals = hearSignals();
const { run } = await load().catch((error: Error & { code?: unknown }) => {
  const [what] = error.message.split('\n');
  // Errors of Node.js, and of libraries that come with binaries.
  if (/^(Cannot find (module|package|native binding)|No native build was found)/.test(error.message))
    process.stderr.write(
      `relora-server: a package is missing (${what}): install again on this system, with optional dependencies\n`,
    );
  else if (error.code === 'ERR_DLOPEN_FAILED')
    process.stderr.write(
      `relora-server: a library does not run on this system (${what}): Linux needs glibc 2.29 or newer, or musl\n`,
    );
  else throw error;
  process.exit(1);
});

async function load() {
  const { thisPlatform } = await import('@relora/engine/binaries');
  const { libc } = thisPlatform();
  // The library of SQLite recognizes musl only on Alpine.
  if (libc !== null) process.env.LIBC = libc;
  return await import('./run.js');
}
await run(signals);
