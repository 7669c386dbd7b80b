import { spawnSync } from 'node:child_process';
import { chownSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { main, startServerProcess, type ServerProcess } from './serverProcess.js';
import { temporaryFolder } from './tinyJob.js';

/** `nobody` on Linux: a user for whom the modes of folders count. Where the tests are not run by root they are run by such a one. */
const isRoot = process.getuid!() === 0;
const user = isRoot ? { uid: 65534, gid: 65534 } : {};

/** Whether that user may read this checkout, as the server has to. */
export const canBePlainUser = ((): boolean => {
  const code = 'require("node:fs").accessSync(process.argv[1])';
  return spawnSync(process.execPath, ['-e', code, main], user).status === 0;
})();

/** Hands a folder or file to the user of the server. */
export function own(path: string): string {
  if (isRoot) chownSync(path, user.uid!, user.gid!);
  return path;
}

/** A data folder of the user of the server. */
export function ownedFolder(): string {
  const folder = join(own(temporaryFolder()), 'data');
  mkdirSync(folder);
  return own(folder);
}

/** A server of a user who is not root. */
export async function startAsPlainUser(
  dataFolder: string,
  settings: Record<string, string> = {},
): Promise<ServerProcess> {
  return await startServerProcess(dataFolder, settings, onTestFinished, user);
}
