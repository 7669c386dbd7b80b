import { constants } from 'node:fs';
import { lstat, open, realpath, type FileHandle } from 'node:fs/promises';
import { isAbsolute, sep } from 'node:path';

const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants;

/** Linux alone has it; a folder need not be readable to be passed through. */
const O_PATH = 0o10000000;

/** Ways that changed while they were walked are walked again so often, then given up. */
const triesMax = 20;

/** A path that leads out of the folders that were allowed, or to nothing: one answer for both, so that nobody learns which. */
export class NotBeneath extends Error {
  override name = 'NotBeneath';
  readonly code = 'ENOENT';
}

export interface OpenedBeneath {
  handle: FileHandle;
  /** With every link resolved. */
  path: string;
}

/**
 * Opens a file or folder whose real path, links resolved, lies in one of the folders `roots`, and keeps it so whatever changes
 * meanwhile: from a held folder one name after another is opened, none of them through a link. Links may lead anywhere
 * within the folders, as in the caches of Hugging Face. Throws NotBeneath, or the system's error for what is there and cannot be
 * opened. Pipes and devices are opened too, without waiting: the caller looks at what it got.
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
 * Opens a file by names of our own below a folder. A link among them is not ours, wherever it leads: it is refused, also one that is
 * put there meanwhile. The folder itself may be reached through links. Throws as openBeneath does.
 */
export async function openWithoutLinks(
  folder: string,
  names: readonly string[],
  { holdsFolders = hasHeldFolders }: { holdsFolders?: () => Promise<boolean> } = {},
): Promise<FileHandle> {
  const notThere = () => new NotBeneath(`${[folder, ...names].join(sep)} is not there, or behind a link`);
  const root = await realpath(folder).catch(() => undefined);
  if (root === undefined || names.some((name) => name === '..' || name.includes(sep))) throw notThere();
  const handle = (await holdsFolders()) ? await walkHeld(root, names) : await walkLooking(root, names);
  if (handle === 'changed') throw notThere();
  return handle;
}

/** The root that a path lies in, and the names below it. */
async function locate(roots: readonly string[], path: string): Promise<{ root: string; names: string[] }> {
  const real = await realpath(path).catch(() => undefined);
  for (const folder of real === undefined ? [] : roots) {
    const root = await realpath(folder).catch(() => undefined);
    if (root === undefined) continue;
    const prefix = root.endsWith(sep) ? root : root + sep;
    if (real === root) return { root, names: [] };
    if (real!.startsWith(prefix)) return { root, names: real!.slice(prefix.length).split(sep) };
  }
  throw new NotBeneath(`${path} is not there, or not inside of an allowed folder`);
}

/** Each name is looked up in the folder that is held open: what is put in the place of one above it does not matter. */
async function walkHeld(root: string, names: readonly string[]): Promise<FileHandle | 'changed'> {
  const pass = O_PATH | O_DIRECTORY | O_NOFOLLOW;
  let held = await open(root, names.length === 0 ? O_RDONLY | O_DIRECTORY : pass).catch(changedOr);
  for (const [index, name] of names.entries()) {
    if (held === 'changed') break;
    const flags = index < names.length - 1 ? pass : O_RDONLY | O_NOFOLLOW | O_NONBLOCK;
    const folder = held;
    const next: FileHandle | 'changed' = await open(`/proc/self/fd/${folder.fd}/${name}`, flags)
      .catch(changedOr)
      .finally(() => folder.close()); // also where it throws: no descriptor is left to the collector
    held = next;
  }
  return held;
}

/**
 * Where the system has no such folders: the file is opened by its real path, and then it is looked whether that path is still
 * one without links and leads to the file that was opened. Whoever swaps a folder twice in between is not noticed.
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

/** A name that is a link, gone or no folder any more was none of these when its path was resolved. */
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
