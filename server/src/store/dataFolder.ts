import { mkdirSync } from 'node:fs';
import { StoreUnusable, isDiskFull } from './storeError.js';
import { storageCures, storageFault, type StorageFault } from './storageFault.js';

const reasonOfSqlite = new Map<unknown, StorageFault['reason']>([
  ['SQLITE_READONLY', 'STORAGE_UNWRITABLE'],
  ['SQLITE_CANTOPEN', 'STORAGE_UNWRITABLE'],
  ['SQLITE_IOERR', 'STORAGE_BROKEN'],
]);

/** Creates a data folder if there is none. No other user of the machine can read prompts, data or weights in it. Throws StoreUnusable. */
export function makeDataFolder(dataFolder: string): void {
  try {
    mkdirSync(dataFolder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw unusable(dataFolder, error as Error);
  }
}

/** The error for a file of the store, or its folder, that cannot be used, with what to do. */
export function unusable(path: string, error: Error): StoreUnusable {
  if (isDiskFull(error))
    return new StoreUnusable(`${path} cannot be used (the disk is full): ${storageCures.STORAGE_FULL}`, {
      cause: error,
    });
  if ((error as { code?: unknown }).code === 'SQLITE_CORRUPT')
    // Either of the two: see isDiskBroken.
    return new StoreUnusable(
      `${path} cannot be used (${error.message}): ${storageCures.STORAGE_BROKEN}; if it has no errors, restore the file from a backup`,
      { cause: error },
    );
  const reason = reasonOfSqlite.get((error as { code?: unknown }).code) ?? storageFault(error)?.reason;
  const cure =
    reason === undefined
      ? 'check that it is a store of this server and can be written'
      : storageCures[reason];
  return new StoreUnusable(`${path} cannot be used (${error.message}): ${cure}`, { cause: error });
}
