import { mkdirSync, writeFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { freeMemoryBytes, jobShareBytes, machineMemoryBytes } from '../../server/dist/machineMemory.js';
import { temporaryFolder } from './parts.js';

/** A folder with these files, in the kernel's layout. */
function machine(files: Record<string, string>): string {
  const root = temporaryFolder();
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return root;
}

const meminfo = { 'proc/meminfo': 'MemTotal: 9000000 kB\nMemFree: 5 kB\nMemAvailable:    4000000 kB\n' };

describe('the memory of the machine', () => {
  it('is that of the hardware where no group limits it', () => {
    expect(machineMemoryBytes(machine({}))).toBe(totalmem());
    const unlimited = machine({
      'proc/self/cgroup': '4:memory:/a\n0::/\n',
      'sys/fs/cgroup/memory/a/memory.limit_in_bytes': '9223372036854771712\n',
      'sys/fs/cgroup/memory.max': 'max\n',
    });
    expect(machineMemoryBytes(unlimited)).toBe(totalmem());
  });

  it('is that of the narrowest group on the way out, in both versions', () => {
    const two = machine({
      'proc/self/cgroup': '0::/pod/container/service\n',
      'sys/fs/cgroup/pod/memory.max': '3000000\n',
      'sys/fs/cgroup/pod/container/memory.max': '2000000\n',
      'sys/fs/cgroup/pod/container/service/memory.max': 'max\n',
    });
    expect(machineMemoryBytes(two)).toBe(2_000_000);
    const one = machine({
      'proc/self/cgroup': '9:cpu,cpuacct:/b\n4:memory:/docker/abc\n',
      'sys/fs/cgroup/memory/memory.limit_in_bytes': '5000000\n',
    });
    expect(machineMemoryBytes(one)).toBe(5_000_000);
  });
});

describe('the memory that is free', () => {
  it('is what the kernel calls available, or what a group has left; pages that can be dropped count as free', () => {
    expect(freeMemoryBytes(machine(meminfo))).toBe(4_000_000 * 1024);
    const limited = machine({
      ...meminfo,
      'proc/self/cgroup': '0::/a\n',
      'sys/fs/cgroup/a/memory.max': '1000\n',
      'sys/fs/cgroup/a/memory.current': '900\n',
      'sys/fs/cgroup/a/memory.stat': 'anon 300\nfile 600\ninactive_file 500\n',
    });
    expect(freeMemoryBytes(limited)).toBe(600);
  });
});

it('is shared evenly by the slots, after the service', () => {
  const service = 256 * 2 ** 20;
  expect(jobShareBytes(1, service + 1000)).toBe(1000);
  expect(jobShareBytes(4, service + 1000)).toBe(250);
  expect(jobShareBytes(1, service / 2)).toBe(0);
});
