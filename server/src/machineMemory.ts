import { readFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { dirname, join } from 'node:path';

/** Memory for the service itself, with its store and the system around it; trainers get the rest. */
const serviceBytes = 256 * 2 ** 20;

/** Memory that one job may use if the operator set no limit: an even share for each slot. */
export function jobShareBytes(slots: number, machineBytes = machineMemoryBytes()): number {
  return Math.max(0, Math.floor((machineBytes - serviceBytes) / slots));
}

/** Memory that this process and its children may use: that of the machine, or of the tightest control group around us. */
export function machineMemoryBytes(root = '/'): number {
  return Math.min(totalmem(), ...controlGroups(root).map(({ limitBytes }) => limitBytes));
}

/** Memory that is available now, without evicting anything. */
export function freeMemoryBytes(root = '/'): number {
  const groups = controlGroups(root).map(({ limitBytes, usedBytes }) => limitBytes - usedBytes);
  const available = /^MemAvailable: +(\d+) kB$/m.exec(read(join(root, 'proc/meminfo')))?.[1];
  // On systems without that file Node.js is asked.
  const bytes = available === undefined ? process.availableMemory() : Number(available) * 1024;
  return Math.max(0, Math.min(bytes, ...groups));
}

interface ControlGroup {
  limitBytes: number;
  /** Without page cache that the kernel can drop. */
  usedBytes: number;
}

/** Files of the two versions of control groups, below `sys/fs/cgroup`. */
const versions = {
  one: {
    folder: 'sys/fs/cgroup/memory',
    limit: 'memory.limit_in_bytes',
    used: 'memory.usage_in_bytes',
    droppable: /^total_inactive_file (\d+)$/m,
  },
  two: {
    folder: 'sys/fs/cgroup',
    limit: 'memory.max',
    used: 'memory.current',
    droppable: /^inactive_file (\d+)$/m,
  },
} as const;

/**
 * The groups with a limit around this process, up to the root. `process.constrainedMemory` reads only the innermost one, and the limit of a
 * service or a container is often set further out.
 */
function controlGroups(root: string): ControlGroup[] {
  const groups: ControlGroup[] = [];
  for (const line of read(join(root, 'proc/self/cgroup')).split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (path === undefined || (controllers !== '' && controllers !== 'memory')) continue;
    const { folder, limit, used, droppable } = controllers === '' ? versions.two : versions.one;
    for (let group = path; ; group = dirname(group)) {
      const file = (name: string): string => read(join(root, folder, group, name));
      // `max` of version two is NaN here; version one means "none" by a number beyond any memory size.
      const limitBytes = parseInt(file(limit), 10);
      if (Number.isFinite(limitBytes)) {
        const dropped = Number(droppable.exec(file('memory.stat'))?.[1] ?? 0);
        groups.push({ limitBytes, usedBytes: (parseInt(file(used), 10) || 0) - dropped });
      }
      if (group === '/') break;
    }
  }
  return groups;
}

/** Empty if the file does not exist: another system, or a group whose folder we cannot see. */
function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
