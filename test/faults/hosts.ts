import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** As ssh would, runs a command on the host whose address follows the options. */
const agentText = `#!/bin/sh
while [ "\${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec ip netns exec "relora-$host" unshare --uts sh -c 'hostname "$1"; shift; exec sh -c "$*"' sh "$host" "$@"
`;

/**
 * Hosts with a network between them, and with the machine of the test: network namespaces whose links meet in a bridge. A host has its own
 * name, as MPI expects it, and shares files and processes with the machine.
 */
export class Hosts {
  private readonly folder = mkdtempSync(join(tmpdir(), 'relora-hosts-'));
  private readonly network = `10.77.${process.pid % 250}`;
  private readonly bridge = `relora${process.pid % 250}`;

  constructor(readonly count: number) {
    writeFileSync(this.agent, agentText);
    chmodSync(this.agent, 0o755);
    run('ip', 'link', 'add', this.bridge, 'type', 'bridge');
    run('ip', 'address', 'add', `${this.machine}/24`, 'dev', this.bridge);
    run('ip', 'link', 'set', this.bridge, 'up');
    for (let index = 0; index < count; index++) {
      const [space, link] = [this.space(index), this.link(index)];
      run('ip', 'netns', 'add', space);
      run('ip', 'link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', space);
      run('ip', 'link', 'set', link, 'master', this.bridge);
      run('ip', '-n', space, 'address', 'add', `${this.address(index)}/24`, 'dev', 'eth0');
      run('ip', '-n', space, 'link', 'set', 'lo', 'up');
      run('ip', '-n', space, 'link', 'set', 'eth0', 'up');
      this.join(index);
    }
  }

  /** Address of the machine of the test. */
  get machine(): string {
    return `${this.network}.1`;
  }

  address(index: number): string {
    return `${this.network}.${index + 2}`;
  }

  /** A program that runs commands on a host, for mpirun. */
  get agent(): string {
    return join(this.folder, 'agent.sh');
  }

  /** What to put before a program to run it on a host, under the same process id. */
  prefix(index: number): string[] {
    const name = 'hostname "$1"; shift; exec "$@"';
    return [
      ...['ip', 'netns', 'exec', this.space(index)],
      ...['unshare', '--uts', 'sh', '-c', name, 'sh', this.address(index)],
    ];
  }

  /** Nothing gets to the host or away from it. */
  cut(index: number): void {
    run('ip', 'link', 'set', this.link(index), 'down');
  }

  join(index: number): void {
    run('ip', 'link', 'set', this.link(index), 'up');
  }

  close(): void {
    for (let index = 0; index < this.count; index++) run('ip', 'netns', 'delete', this.space(index));
    run('ip', 'link', 'delete', this.bridge);
    rmSync(this.folder, { recursive: true, force: true });
  }

  private space(index: number): string {
    return `relora-${this.address(index)}`;
  }

  private link(index: number): string {
    return `${this.bridge}-${index}`;
  }
}

/** Whether this user may make hosts here. */
export const canMakeHosts =
  process.platform === 'linux' &&
  process.getuid?.() === 0 &&
  spawnSync('unshare', ['--net', 'ip', 'link', 'add', 'relora', 'type', 'bridge']).status === 0;

function run(program: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${[program, ...args].join(' ')} failed: ${stderr}`);
}
