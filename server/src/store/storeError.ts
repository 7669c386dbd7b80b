/** Why a store cannot be used; the message says which one and what to do. */
export class StoreUnusable extends Error {
  override name = 'StoreUnusable';
}

/** The store of blobs cannot be reached, or does not work as it should. The operation can be repeated. */
export class BlobsAway extends Error {
  override name = 'BlobsAway';
  readonly code = 'BLOBS_AWAY';
}

/** Codes of SQLite, of the file system and of PostgreSQL (class 53: its server ran out of a resource). */
const fullCodes = new Set(['SQLITE_FULL', 'ENOSPC', 'EDQUOT', '53100']);

/** PostgreSQL cannot be reached, is starting up, or has no connection left. The transaction was rolled back, or its outcome is unknown. */
const awayCodes = new Set([
  'BLOBS_AWAY',
  'EADDRNOTAVAIL',
  'EAI_AGAIN',
  'ECONNABORTED',
  'ECONNREFUSED',
  'ECONNRESET',
  'EHOSTDOWN',
  'EHOSTUNREACH',
  'ENETDOWN',
  'ENETRESET',
  'ENETUNREACH',
  'ENOTFOUND',
  'EPIPE',
  'ETIMEDOUT',
  '25P03',
  '53300',
  '57P05',
  '57P01',
  '57P02',
  '57P03',
]);

/**
 * Whether an operation failed because the disk, or the quota on it, is full. It was rolled back and can be repeated once there is space.
 */
export function isDiskFull(error: unknown): boolean {
  return fullCodes.has(codeOf(error));
}

/**
 * Whether a disk, or the store on it, cannot be read or written: the operation was rolled back, or its outcome is unknown. SQLite calls a
 * file malformed, too, that the disk does not give (EIO).
 */
export function isDiskBroken(error: unknown): boolean {
  return /^(EIO$|ESTALE$|SQLITE_IOERR|SQLITE_CORRUPT|SQLITE_READONLY|SQLITE_CANTOPEN|58030$)/.test(
    codeOf(error),
  );
}

/** Whether this process or the machine has too many open files: it can be repeated when others are closed. */
export function isOutOfFiles(error: unknown): boolean {
  return ['EMFILE', 'ENFILE'].includes(codeOf(error));
}

/** Whether the system refused a file operation: because of the disk, permissions or open files. Node's own codes begin with ERR_. */
export function isOfFiles(error: unknown): boolean {
  return /^E(?!RR_)[A-Z0-9]+$/.test(codeOf(error));
}

/** Whether the database cannot be reached at present: nothing is lost, and the operation can be repeated. */
export function isStoreAway(error: unknown): boolean {
  const code = codeOf(error);
  if (awayCodes.has(code) || /^08...$/.test(code)) return true;
  // pg has no code for a connection that ended during a statement.
  return (
    error instanceof Error &&
    /^Connection terminated|^Client has encountered a connection error|^timeout exceeded when trying to connect/.test(
      error.message,
    )
  );
}

/** Whether the store failed, and not a file of the task that used it. */
export function isOfStore(error: unknown): boolean {
  const code = codeOf(error);
  // SQLSTATE: five letters or digits, at least one of them a digit; no class begins with E, unlike the codes for files.
  return code.startsWith('SQLITE_') || /^(?=.*\d)[0-9A-DF-Z][0-9A-Z]{4}$/.test(code) || isStoreAway(error);
}

/** Whether it is temporary: the operation was rolled back, and is repeated later. */
export function isPassing(error: unknown): boolean {
  return isDiskFull(error) || isStoreAway(error);
}

/**
 * Whether the embedded store could not do its work, as opposed to refusing it: nothing can be promised any more and the process should end.
 * Errors of a task's own files, an unreachable database or a wrong statement do not count.
 */
export function isStoreBroken(error: unknown): boolean {
  const code = codeOf(error);
  return code.startsWith('SQLITE_') && !/^SQLITE_(CONSTRAINT|TOOBIG)/.test(code) && !isDiskFull(error);
}

function codeOf(error: unknown): string {
  const { code } = (error ?? {}) as { code?: unknown };
  return typeof code === 'string' ? code : '';
}
