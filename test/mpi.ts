import { spawnSync } from 'node:child_process';

/** The launchers of Open MPI and MPICH, which Debian can install side by side. */
export const launchers = [
  { name: 'Open MPI', command: 'mpirun.openmpi', flags: ['--allow-run-as-root', '--oversubscribe'] },
  { name: 'MPICH', command: 'mpirun.mpich', flags: [] },
].map((launcher) => ({ ...launcher, isMissing: !isThere(launcher.command) }));

function isThere(command: string): boolean {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}
