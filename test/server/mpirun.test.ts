import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { mpirunArguments, requireMpi } from '../../server/dist/trainer/mpirun.js';

const share = (serverId: string, firstRank: number, count: number, host: string) => ({
  ...{ serverId, firstRank, count, size: 3, attempt: 1, device: 'native' as const },
  launch: { host, command: ['node', 'place.js', `/tmp/${serverId}`] },
});
const shares = [share('one', 0, 2, 'worker-1'), share('two', 2, 1, 'worker-2')];

/** A program that prints a version like mpirun. */
function program(text: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'relora-mpirun-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'mpirun');
  writeFileSync(path, `#!/bin/sh\necho '${text}'\n`);
  chmodSync(path, 0o755);
  return path;
}

describe('mpirun', () => {
  it('gets the hosts of all servers in the order of their ranks, and for each what it named', () => {
    const open = mpirunArguments('Open MPI', '--mca btl_tcp_if_include eth1', shares).join(' ');
    expect(open).toContain('--oversubscribe --bind-to none');
    expect(open).toMatch(
      /oob_tcp_keepalive_time 10 .* --mca btl_tcp_if_include eth1 --host worker-1:2 -np 2 node place.js \/tmp\/one : --host worker-2:1 -np 1 node place.js \/tmp\/two$/,
    );
    expect(mpirunArguments('MPICH', '', shares).join(' ')).toBe(
      '-pmi-port -hosts worker-1:2,worker-2:1 -n 2 node place.js /tmp/one : -n 1 node place.js /tmp/two',
    );
  });

  it('that is missing, or none, keeps a server from starting, which says so', async () => {
    const mpiFlags = '';
    await expect(requireMpi({ mpirun: '/none/mpirun', mpiFlags })).rejects.toThrow(
      /MPI is missing: RELORA_MPIRUN is \/none\/mpirun, which cannot be run \(it is not there\)/,
    );
    await expect(requireMpi({ mpirun: program('prun 1.0'), mpiFlags })).rejects.toThrow(
      /mpirun neither of Open MPI nor of MPICH: it says "prun 1.0/,
    );
    await requireMpi({ mpirun: program('mpirun (Open MPI) 5.0.1'), mpiFlags });
    await requireMpi({ mpirun: program('HYDRA build details:'), mpiFlags });
    await requireMpi({ mpirun: '', mpiFlags });
  });
});
