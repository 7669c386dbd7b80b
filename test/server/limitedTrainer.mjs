// The real trainer with little memory: further allocations fail, as on a machine that has no more.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

// Includes address space that threads reserve but do not use.
const moreBytes = 2 ** 31;
const pageBytes = 4096;
// Imported first, since it reserves address space for WebAssembly that it never uses.
await import('../../server/dist/trainer/process/main.js');
const pages = Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[0]);
spawnSync('prlimit', ['--pid', String(process.pid), `--as=${pages * pageBytes + moreBytes}`]);
