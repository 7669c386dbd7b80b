import { readFileSync } from 'node:fs';

/**
 * How many processes the kernel has ended for want of memory since it started, those of containers among them; null where
 * the system does not say. A SIGKILL while it rises is the only evidence that a process has of its own death.
 */
export function readOomKills(file = '/proc/vmstat'): number | null {
  try {
    const found = /^oom_kill (\d+)$/m.exec(readFileSync(file, 'utf8'));
    return found === null ? null : Number(found[1]);
  } catch {
    return null;
  }
}

/** Ends the sentence about a process that SIGKILL ended, which we did not send. */
export function whyKilled(before: number | null, after: number | null): string {
  if (before === null || after === null) return ', often a sign that the system had no memory left';
  return after > before
    ? ' because memory ran out: the kernel ended a process for it in this time'
    : ' from outside: the kernel reports no lack of memory';
}
