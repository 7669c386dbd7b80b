#!/usr/bin/env node
// npm links commands during installation, in a fresh checkout before anything is built, and silently ignores files that do not
// exist. So it links this file, which is committed.
import { existsSync } from 'node:fs';

// The command reports errors itself; gRPC's own lines would repeat them.
process.env.GRPC_VERBOSITY ??= 'NONE';

const program = new URL('../dist/main.js', import.meta.url);
if (existsSync(program)) await import(program.href);
else {
  process.stderr.write('relora is not built yet: run "npm run setup" in the checkout first\n');
  process.exitCode = 1;
}
