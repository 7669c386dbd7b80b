// The real trainer with little memory: what it asks for beyond is refused, as on a machine that has no more.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

// With what threads reserve and do not fill.
const moreBytes = 2 ** 31;
const pageBytes = 4096;
// First, since it reserves addresses for WebAssembly that it never fills.
await import('../../server/dist/trainer/process/main.js');
const pages = Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[0]);
spawnSync('prlimit', ['--pid', String(process.pid), `--as=${pages * pageBytes + moreBytes}`]);
