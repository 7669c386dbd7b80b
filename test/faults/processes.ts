import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** Resident memory of a process. */
export function residentBytes(pid: number): number {
  const pages = Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]);
  return pages * 4096;
}

/** Files, sockets and pipes that it has open. */
export function openHandles(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((name) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${name}`)];
    } catch {
      return []; // closed meanwhile
    }
  });
}

/** Running child processes. */
export function childrenOf(pid: number): number[] {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
    return children === '' ? [] : children.split(' ').map(Number);
  } catch {
    return []; // it is gone
  }
}

/** Whether it runs: it is neither stopped by a signal nor ended, though its parent may not know yet. */
export function isAwake(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return !/^[TZX]/.test(stat.slice(stat.lastIndexOf(')') + 2));
  } catch {
    return false; // it is gone
  }
}
