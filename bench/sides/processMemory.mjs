import { readFileSync, writeFileSync } from 'node:fs';

/**
 * Peak resident memory of this process. Linux's own figure for the program: `maxrss` also covers the time before exec, when the process was
 * a copy of its parent.
 */
export function peakResidentBytes() {
  return statusBytes('VmHWM') ?? process.resourceUsage().maxRSS * 1024;
}

/** Current resident memory; if the system supports it, the peak is counted from here on. */
export function restartPeak() {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    // Elsewhere the peak remains that of the whole process.
  }
  return statusBytes('VmRSS') ?? process.memoryUsage.rss();
}

/** Memory that can be used without swapping. */
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
