import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { makeDataFolder, unusable } from './dataFolder.js';
import { SqliteConnection } from './sqliteConnection.js';
import { StoreUnusable } from './storeError.js';

/**
 * Locks a data folder whose store is elsewhere: two servers with the same folder would delete each other's copies. It is the lock of a
 * SQLite file, which the kernel releases when the process dies, even by kill -9. Throws StoreUnusable.
 */
export function lockFolder(dataFolder: string): () => void {
  makeDataFolder(dataFolder);
  const holderFile = join(dataFolder, 'server.pid');
  const file = join(dataFolder, 'folder.lock');
  let lock: SqliteConnection | undefined;
  try {
    lock = new SqliteConnection(file, { busyTimeoutMs: 250 });
    lock.prepare('pragma locking_mode = exclusive').all();
    lock.exec('create table if not exists held (pid integer); begin exclusive; delete from held; commit');
  } catch (error) {
    lock?.close();
    if ((error as { code?: unknown }).code !== 'SQLITE_BUSY') throw unusable(file, error as Error);
    const pid = readFileSync(holderFile, 'utf8').trim();
    throw new StoreUnusable(
      `${dataFolder} is in use by the server with pid ${pid}: each server needs a RELORA_DATA_FOLDER of its own`,
      { cause: error },
    );
  }
  writeFileSync(`${holderFile}.new`, `${process.pid}\n`);
  renameSync(`${holderFile}.new`, holderFile);
  const held = lock;
  return () => {
    for (const text of ['pragma locking_mode = normal', 'select count(*) from held'])
      held.prepare(text).all();
    held.close();
  };
}
