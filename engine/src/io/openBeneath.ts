import { constants } from 'node:fs';
import { lstat, open, realpath, type FileHandle } from 'node:fs/promises';
import { isAbsolute, sep } from 'node:path';
import { isDiskFault } from './diskFault.js';

const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants;

/** Linux only; lets a folder be traversed without permission to read it. */
const O_PATH = 0o10000000;

/** Attempts for paths that change while they are walked. */
const triesMax = 20;

/** The path leads out of the allowed folders, or does not exist: one error for both, so that it does not reveal which. */
export class NotBeneath extends Error {
  override name = 'NotBeneath';
  readonly code = 'ENOENT';
}

export interface OpenedBeneath {
  handle: FileHandle;
  /** With all links resolved. */
  path: string;
}

/**
 * Opens a file or folder whose real path, with links resolved, is in one of the folders `roots`, safe against concurrent changes: starting
 * from an open root, each name is opened relative to the folder before it, never through a link. Links may lead anywhere within the roots,
 * as in the caches of Hugging Face. Throws NotBeneath, or the system's error for an existing file that cannot be opened. Pipes and devices
 * are opened too, without blocking: the caller must check what it got.
 */
export async function openBeneath(
  roots: readonly string[],
  path: string,
  { holdsFolders = hasHeldFolders }: { holdsFolders?: () => Promise<boolean> } = {},
): Promise<OpenedBeneath> {
  if (!isAbsolute(path) || path.includes('\0')) throw new NotBeneath(`${path} is no absolute path`);
  for (let tries = 0; tries < triesMax; tries++) {
    const { root, names } = await locate(roots, path);
    const handle = (await holdsFolders()) ? await walkHeld(root, names) : await walkLooking(root, names);
    if (handle !== 'changed') return { handle, path: [root === sep ? '' : root, ...names].join(sep) || sep };
  }
  throw new NotBeneath(`${path} changed again and again while it was opened`);
}

/**
 * Opens a file by names that we chose, below a folder. We create no links, so a link among these names is refused, wherever it leads, even
 * if it is created during the call. The folder itself may be reached through links. Throws as openBeneath does.
 */
export async function openWithoutLinks(
  folder: string,
  names: readonly string[],
  { holdsFolders = hasHeldFolders }: { holdsFolders?: () => Promise<boolean> } = {},
): Promise<FileHandle> {
  const notThere = () => new NotBeneath(`${[folder, ...names].join(sep)} is not there, or behind a link`);
  const root = await resolved(folder);
  if (root === undefined || names.some((name) => name === '..' || name.includes(sep))) throw notThere();
  const handle = (await holdsFolders()) ? await walkHeld(root, names) : await walkLooking(root, names);
  if (handle === 'changed') throw notThere();
  return handle;
}

/** The root that contains a path, and the names below it. */
async function locate(roots: readonly string[], path: string): Promise<{ root: string; names: string[] }> {
  const real = await resolved(path);
  for (const folder of real === undefined ? [] : roots) {
    const root = await resolved(folder);
    if (root === undefined) continue;
    const prefix = root.endsWith(sep) ? root : root + sep;
    if (real === root) return { root, names: [] };
    if (real!.startsWith(prefix)) return { root, names: real!.slice(prefix.length).split(sep) };
  }
  throw new NotBeneath(`${path} is not there, or not inside of an allowed folder`);
}

/** Undefined if there is no such path, or none that this user may see. */
async function resolved(path: string): Promise<string | undefined> {
  return await realpath(path).catch((error: unknown) => {
    if (isDiskFault(error)) throw error;
    return undefined;
  });
}

/** Each name is looked up relative to the open folder before it, so replacing a parent folder has no effect. */
async function walkHeld(root: string, names: readonly string[]): Promise<FileHandle | 'changed'> {
  const pass = O_PATH | O_DIRECTORY | O_NOFOLLOW;
  let held = await open(root, names.length === 0 ? O_RDONLY | O_DIRECTORY : pass).catch(changedOr);
  for (const [index, name] of names.entries()) {
    if (held === 'changed') break;
    const flags = index < names.length - 1 ? pass : O_RDONLY | O_NOFOLLOW | O_NONBLOCK;
    const folder = held;
    const next: FileHandle | 'changed' = await open(`/proc/self/fd/${folder.fd}/${name}`, flags)
      .catch(changedOr)
      .finally(() => folder.close()); // also if it throws: no descriptor is left to the garbage collector
    held = next;
  }
  return held;
}

/**
 * For systems without such lookups: opens the file by its real path, and then checks that this path is still free of links and leads to the
 * opened file. Swapping a folder twice in between goes unnoticed.
 */
async function walkLooking(root: string, names: readonly string[]): Promise<FileHandle | 'changed'> {
  const path = [root === sep ? '' : root, ...names].join(sep) || sep;
  const handle = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch(changedOr);
  if (handle === 'changed') return handle;
  try {
    const [opened, now, found] = [await handle.stat(), await realpath(path), await lstat(path)];
    if (now === path && opened.ino === found.ino && opened.dev === found.dev) return handle;
  } catch (error) {
    await handle.close();
    return changedOr(error);
  }
  await handle.close();
  return 'changed';
}

/** The path had only folders when it was resolved; a name that is now a link, missing or not a folder has changed. */
function changedOr(error: unknown): 'changed' {
  if (['ELOOP', 'ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return 'changed';
  throw error;
}

async function hasHeldFolders(): Promise<boolean> {
  if (process.platform !== 'linux') return false;
  return await lstat('/proc/self/fd').then(
    () => true,
    () => false,
  );
}
