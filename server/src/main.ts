#!/usr/bin/env node
import { hearSignals } from './signals.js';

// Said before anything is loaded that a system without a server may lack.
if (process.platform === 'win32') {
  process.stderr.write(
    'relora-server: the server does not run on Windows: use WSL2 or Docker (SDK and CLI run there)\n',
  );
  process.exit(2);
}

// Asked every few seconds by container runtimes: it loads nothing else.
if (process.argv[2] === 'health') await (await import('./admin/healthCommand.js')).healthCommand();

// Before anything else is loaded, which takes longer than a container runtime may wait: the kernel drops what the first process
// of a container does not listen for.
const signals = hearSignals();
const { run } = await import('./run.js').catch((error: Error) => {
  // Of Node.js, and of libraries whose binaries are optional dependencies of theirs.
  if (!/^Cannot find (module|package|native binding)/.test(error.message)) throw error;
  const [what] = error.message.split('\n');
  process.stderr.write(
    `relora-server: a package is missing (${what}): install again on this system, with optional dependencies\n`,
  );
  process.exit(1);
});
await run(signals);
