import { readFileSync, writeFileSync } from 'node:fs';

/**
 * The most memory that this process has held resident. Linux's own figure for the program: `maxrss` also covers what the
 * process was before it became this program, a copy of its parent.
 */
export function peakResidentBytes() {
  return statusBytes('VmHWM') ?? process.resourceUsage().maxRSS * 1024;
}

/** What it holds now; from here on the peak is counted from zero where the system can do that. */
export function restartPeak() {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    // Elsewhere the peak stays that of the whole process.
  }
  return statusBytes('VmRSS') ?? process.memoryUsage.rss();
}

/** Memory that may be taken without swapping. */
export function availableBytes() {
  return fieldBytes('/proc/meminfo', 'MemAvailable') ?? process.availableMemory();
}

function statusBytes(field) {
  return fieldBytes('/proc/self/status', field);
}

export function fieldBytes(path, field) {
  try {
    const kilobytes = new RegExp(`^${field}:\\s*(\\d+) kB`, 'm').exec(readFileSync(path, 'utf8'))?.[1];
    return kilobytes === undefined ? null : Number(kilobytes) * 1024;
  } catch {
    return null;
  }
}
