import { readFileSync } from 'node:fs';

/** A hostile file makes a process grow by some 200 MB in this time. */
const lookMs = 100;
const pageBytes = 4096;

/**
 * Calls once when the memory of a process that is its own, without files that are mapped, is above a limit; answers the function that
 * ends the watch. It is watched from outside rather than limited by the kernel (RLIMIT_AS, RLIMIT_DATA): V8 and the engine reserve
 * far more addresses than they use, an allocation that the kernel refuses ends native code without a word, and a control group
 * needs rights. So a process may be above the limit for a moment. Where the system has no /proc there is no watch.
 */
export function watchMemory(pid: number, bytesMax: number, onExceeded: (bytes: number) => void): () => void {
  const timer = setInterval(() => {
    const bytes = ownBytes(pid);
    if (bytes === null || bytes > bytesMax) clearInterval(timer);
    if (bytes !== null && bytes > bytesMax) onExceeded(bytes);
  }, lookMs);
  timer.unref();
  return () => clearInterval(timer);
}

/** Null when the process is gone, or the system does not say. */
function ownBytes(pid: number): number | null {
  try {
    const [, resident, shared] = readFileSync(`/proc/${pid}/statm`, 'latin1').split(' ').map(Number);
    return (resident! - shared!) * pageBytes;
  } catch {
    return null;
  }
}
