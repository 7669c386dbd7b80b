#!/usr/bin/env node
// npm links commands when it installs, which in a fresh checkout is before anything is built: it links files that are there
// and leaves out the others without a word. So the file that it links is this one, which is committed.
import { existsSync } from 'node:fs';

// The command says itself what went wrong; gRPC's own lines would say it twice.
process.env.GRPC_VERBOSITY ??= 'NONE';

const program = new URL('../dist/main.js', import.meta.url);
if (existsSync(program)) await import(program.href);
else {
  process.stderr.write('relora is not built yet: run "npm run setup" in the checkout first\n');
  process.exitCode = 1;
}
