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
const { run } = await import('./run.js').catch((error: Error) => {
  // Errors of Node.js, and of libraries whose binaries are optional dependencies.
  if (!/^Cannot find (module|package|native binding)/.test(error.message)) throw error;
  const [what] = error.message.split('\n');
  process.stderr.write(
    `relora-server: a package is missing (${what}): install again on this system, with optional dependencies\n`,
  );
  process.exit(1);
});
await run(signals);
