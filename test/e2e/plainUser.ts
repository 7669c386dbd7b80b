import { spawnSync } from 'node:child_process';
import { chownSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { main, startServerProcess, type ServerProcess } from './serverProcess.js';
import { temporaryFolder } from './tinyJob.js';

/** `nobody` on Linux: a user to whom folder permissions apply. If the tests do not run as root, their own user is such a one. */
const isRoot = process.getuid!() === 0;
const user = isRoot ? { uid: 65534, gid: 65534 } : {};

/** Whether that user may read this checkout, as the server must. */
export const canBePlainUser = ((): boolean => {
  const code = 'require("node:fs").accessSync(process.argv[1])';
  return spawnSync(process.execPath, ['-e', code, main], user).status === 0;
})();

/** Gives a folder or file to the server's user. */
export function own(path: string): string {
  if (isRoot) chownSync(path, user.uid!, user.gid!);
  return path;
}

/** A data folder owned by the server's user. */
export function ownedFolder(): string {
  const folder = join(own(temporaryFolder()), 'data');
  mkdirSync(folder);
  return own(folder);
}

/** Starts a server as a user other than root. */
export async function startAsPlainUser(
  dataFolder: string,
  settings: Record<string, string> = {},
): Promise<ServerProcess> {
  return await startServerProcess(dataFolder, settings, onTestFinished, user);
}
