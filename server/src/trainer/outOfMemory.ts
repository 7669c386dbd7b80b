import { readFileSync } from 'node:fs';

/**
 * How many processes the kernel has killed for lack of memory since it started, including those in containers; null if the system does not
 * say. If this number rises when a child gets SIGKILL, that is the only sign of the cause.
 */
export function readOomKills(file = '/proc/vmstat'): number | null {
  try {
    const found = /^oom_kill (\d+)$/m.exec(readFileSync(file, 'utf8'));
    return found === null ? null : Number(found[1]);
  } catch {
    return null;
  }
}

/** Ends the sentence about a process that was killed by a SIGKILL that we did not send. */
export function whyKilled(before: number | null, after: number | null): string {
  if (before === null || after === null) return ', often a sign that the system had no memory left';
  return after > before
    ? ' because memory ran out: the kernel ended a process for it in this time'
    : ' from outside: the kernel reports no lack of memory';
}
