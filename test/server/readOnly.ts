import { spawnSync } from 'node:child_process';
import { chmodSync } from 'node:fs';
import { onTestFinished } from 'vitest';

/**
 * Makes a folder read-only and returns a function that undoes it, which the end of the test does too. Root may write whatever the mode
 * says, so for root the folder is mounted read-only over itself.
 */
export function makeReadOnly(folder: string): () => void {
  const isRoot = process.getuid!() === 0;
  if (!isRoot) chmodSync(folder, 0o555);
  else {
    mount('--bind', folder, folder);
    mount('-o', 'remount,ro,bind', folder);
  }
  let isReadOnly = true;
  const end = (): void => {
    if (!isReadOnly) return;
    isReadOnly = false;
    if (isRoot) spawnSync('umount', ['-l', folder]);
    else chmodSync(folder, 0o755);
  };
  onTestFinished(end);
  return end;
}

function mount(...args: string[]): void {
  const { status, stderr } = spawnSync('mount', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`mount ${args.join(' ')}: ${stderr}`);
}

/** Whether this machine can make a folder read-only for this user: root in a container may not be able to mount. */
export const canMakeReadOnly = ((): boolean => {
  if (process.getuid!() !== 0) return true;
  return spawnSync('unshare', ['-m', 'true']).status === 0;
})();
