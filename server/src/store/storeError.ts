/** Why a store cannot be used; the message names it and what to do. */
export class StoreUnusable extends Error {
  override name = 'StoreUnusable';
}

/** The store of blobs cannot be reached, or does not do what it should. What was begun can be begun again. */
export class BlobsAway extends Error {
  override name = 'BlobsAway';
  readonly code = 'BLOBS_AWAY';
}

/** Codes of SQLite, of the file system and of PostgreSQL (class 53: a resource of its server ran out). */
const fullCodes = new Set(['SQLITE_FULL', 'ENOSPC', 'EDQUOT', '53100']);

/** PostgreSQL is not there, is being restarted, or has no connection left. What was begun was undone, or its outcome is unknown. */
const awayCodes = new Set([
  'BLOBS_AWAY',
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ENOTFOUND',
  '53300',
  '57P01',
  '57P02',
  '57P03',
]);

/**
 * Whether an operation failed because the disk, or the quota on it, is full. What it began was undone: it can be tried
 * again once there is room.
 */
export function isDiskFull(error: unknown): boolean {
  return fullCodes.has(codeOf(error));
}

/** Whether a disk, or the store on it, cannot be read or written: what was begun was undone, or its outcome is unknown. */
export function isDiskBroken(error: unknown): boolean {
  return /^(EIO$|SQLITE_IOERR|SQLITE_READONLY|SQLITE_CANTOPEN|58030$)/.test(codeOf(error));
}

/** Whether no more files can be opened, by this process or on this machine: it can be tried again when others are closed. */
export function isOutOfFiles(error: unknown): boolean {
  return ['EMFILE', 'ENFILE'].includes(codeOf(error));
}

/** Whether it is the system that refused something of a file: a disk, rights, files that are open. Node's own codes begin with ERR_. */
export function isOfFiles(error: unknown): boolean {
  return /^E(?!RR_)[A-Z0-9]+$/.test(codeOf(error));
}

/** Whether the database cannot be reached at present: it can be tried again, nothing of ours is lost. */
export function isStoreAway(error: unknown): boolean {
  const code = codeOf(error);
  if (awayCodes.has(code) || /^08...$/.test(code)) return true;
  // pg has no code for a connection that ended under a statement.
  return (
    error instanceof Error &&
    /^Connection terminated|^Client has encountered a connection error|^timeout exceeded when trying to connect/.test(
      error.message,
    )
  );
}

/** Whether it is the store that failed, and not a file of the task that used it. */
export function isOfStore(error: unknown): boolean {
  const code = codeOf(error);
  // SQLSTATE: five letters or digits, at least one of them a digit, and no class begins with E as the codes of files do.
  return code.startsWith('SQLITE_') || /^(?=.*\d)[0-9A-DF-Z][0-9A-Z]{4}$/.test(code) || isStoreAway(error);
}

/** Whether waiting mends it: what was begun was undone, and is done again later. */
export function isPassing(error: unknown): boolean {
  return isDiskFull(error) || isStoreAway(error);
}

/**
 * Whether the embedded store could not do its work, rather than refuse it: nothing can be promised any more and the process
 * should end. A task's own files, a database that is away and a wrong statement are none of that.
 */
export function isStoreBroken(error: unknown): boolean {
  const code = codeOf(error);
  return code.startsWith('SQLITE_') && !code.startsWith('SQLITE_CONSTRAINT') && !isDiskFull(error);
}

function codeOf(error: unknown): string {
  const { code } = (error ?? {}) as { code?: unknown };
  return typeof code === 'string' ? code : '';
}
