import { readFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { dirname, join } from 'node:path';

/** What the service itself takes, with its store and the system around it; trainers have the rest. */
const serviceBytes = 256 * 2 ** 20;

/** Memory that one job may have where the operator has set no limit: an even share of what the slots have together. */
export function jobShareBytes(slots: number, machineBytes = machineMemoryBytes()): number {
  return Math.max(0, Math.floor((machineBytes - serviceBytes) / slots));
}

/** Memory that this process and its children may have: that of the machine, or of the narrowest control group around us. */
export function machineMemoryBytes(root = '/'): number {
  return Math.min(totalmem(), ...controlGroups(root).map(({ limitBytes }) => limitBytes));
}

/** Memory that could be had now, without pushing anything else out. */
export function freeMemoryBytes(root = '/'): number {
  const groups = controlGroups(root).map(({ limitBytes, usedBytes }) => limitBytes - usedBytes);
  const available = /^MemAvailable: +(\d+) kB$/m.exec(read(join(root, 'proc/meminfo')))?.[1];
  // Systems without that file are asked through Node.js.
  const bytes = available === undefined ? process.availableMemory() : Number(available) * 1024;
  return Math.max(0, Math.min(bytes, ...groups));
}

interface ControlGroup {
  limitBytes: number;
  /** Without file pages that the kernel can drop. */
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
 * The groups with a limit around this process, up to the root: `process.constrainedMemory` reads the innermost alone, and
 * the limit of a service or a container often stands further out.
 */
function controlGroups(root: string): ControlGroup[] {
  const groups: ControlGroup[] = [];
  for (const line of read(join(root, 'proc/self/cgroup')).split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (path === undefined || (controllers !== '' && controllers !== 'memory')) continue;
    const { folder, limit, used, droppable } = controllers === '' ? versions.two : versions.one;
    for (let group = path; ; group = dirname(group)) {
      const file = (name: string): string => read(join(root, folder, group, name));
      // `max` of version two is NaN here; version one says "none" by a number beyond any memory.
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

/** Empty where there is no such file: another system, or a group whose folder is not ours to see. */
function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
