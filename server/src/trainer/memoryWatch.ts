import { readFileSync } from 'node:fs';

/** A hostile file makes a process grow by about 200 MB in this time. */
const lookMs = 100;
const pageBytes = 4096;

/**
 * Calls `onExceeded` once the private memory of a process, without mapped files, is above a limit; returns the function that ends the
 * watch. It watches from outside rather than use a limit of the kernel (RLIMIT_AS, RLIMIT_DATA): V8 and the engine reserve far more address
 * space than they use, native code that is refused an allocation ends without a message, and a control group needs permissions. So a
 * process may exceed the limit for a moment. Without /proc there is no watch.
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

/** Null if the process is gone or the system does not say. */
function ownBytes(pid: number): number | null {
  try {
    const [, resident, shared] = readFileSync(`/proc/${pid}/statm`, 'latin1').split(' ').map(Number);
    return (resident! - shared!) * pageBytes;
  } catch {
    return null;
  }
}
