import { mkdirSync, rmdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { isDiskFault } from '@relora/engine/files';

/** A file system error that somebody can fix: its reason, and a message that names the path. */
export interface StorageFault {
  reason: 'STORAGE_FULL' | 'STORAGE_UNWRITABLE' | 'STORAGE_BROKEN';
  message: string;
}

/** Faults for which a job is paused. A broken disk is not one: the job is retried, as after a crash. */
export type PausingFault = Exclude<StorageFault['reason'], 'STORAGE_BROKEN'>;

/** What to do about it, as the middle of a sentence. */
export const storageCures: Readonly<Record<StorageFault['reason'], string>> = {
  STORAGE_FULL: 'make room',
  STORAGE_UNWRITABLE: 'give the user of the server the right to write there, or mount it for writing',
  STORAGE_BROKEN: 'see to the disk',
};

const unwritableCodes = new Set(['EACCES', 'EPERM', 'EROFS']);

/** The storage fault of an error with one of our files; undefined for any other error. */
export function storageFault(error: unknown): StorageFault | undefined {
  const { syscall, path, message, ...given } = (error ?? {}) as Partial<
    Record<'code' | 'syscall' | 'path' | 'message', unknown>
  >;
  const where = typeof path === 'string' ? path : 'A file';
  // Node's recursive mkdir reports ENOENT if a parent cannot be created, whatever the reason: a missing parent would have been created.
  const isOfParent = given.code === 'ENOENT' && syscall === 'mkdir' && typeof path === 'string';
  const code = isOfParent ? (whyNoFolder(path) ?? 'EROFS') : given.code;
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return { reason: 'STORAGE_FULL', message: `The disk of the data folder is full (${String(message)})` };
  if (isDiskFault(error))
    return {
      reason: 'STORAGE_BROKEN',
      message: `${where} cannot be read or written (${code}): the disk is broken`,
    };
  if (typeof code === 'string' && unwritableCodes.has(code)) {
    const why = code === 'EROFS' ? 'it is read-only' : code;
    return { reason: 'STORAGE_UNWRITABLE', message: `${where} cannot be written (${why})` };
  }
  return undefined;
}

/** Error code of creating the folder; undefined if it can be created now. */
function whyNoFolder(path: string): string | undefined {
  try {
    mkdirSync(path);
    rmdirSync(path);
    return undefined;
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return undefined;
    return code === 'ENOENT' && dirname(path) !== path ? whyNoFolder(dirname(path)) : code;
  }
}
