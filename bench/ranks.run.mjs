import { spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, unlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { sharedMemoryBytes } from '../engine/dist/plan/index.js';

const program = fileURLToPath(new URL('./ranks.rank.mjs', import.meta.url));

/**
 * Trains a specification in `size` processes; returns each one's result (ranks.rank.mjs). Runs leave files in `folder`. If `mpirun`, the
 * words of a command, is given, it starts them and they use MPI; otherwise they share memory. `overlap`: whether they exchange gradients
 * while others are still computed; by default as trainers do.
 */
export async function runRanks(spec, size, datasetFolder, folder, { mpirun, overlap } = {}) {
  const orderOf = (more) => JSON.stringify({ spec, datasetFolder, overlap, ...more });
  const newFolder = (name) => mkdtempSync(join(folder, `${name}-`));
  if (mpirun !== undefined && size > 1) {
    const [command, ...flags] = mpirun.split(' ');
    const order = orderOf({ mpiFolder: newFolder('ranks') });
    const child = spawn(command, [...flags, '-np', String(size), process.execPath, program, order], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const results = (await resultOf(child))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    return results.sort((one, other) => one.rank - other.rank);
  }
  const path = join(folder, 'shared');
  const file = openSync(path, 'wx+');
  unlinkSync(path);
  writeSync(file, new Uint8Array(sharedMemoryBytes(size)), 0, sharedMemoryBytes(size), 0);
  const children = Array.from({ length: size }, (_, rank) => {
    const order = orderOf({ rank, size, runFolder: newFolder(`rank-${rank}`) });
    return spawn(process.execPath, [program, order], { stdio: ['ignore', 'pipe', 'inherit', file] });
  });
  closeSync(file);
  return await Promise.all(children.map(async (child) => JSON.parse(await resultOf(child))));
}

async function resultOf(child) {
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (more) => (output += more));
  const code = await new Promise((resolve) => child.once('close', resolve));
  if (code !== 0) throw new Error(`A process of the run ended with ${code}`);
  return output;
}
