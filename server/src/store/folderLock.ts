import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Libsql from 'libsql';
import { StoreUnusable } from './storeError.js';

/**
 * Holds a data folder whose store is elsewhere: two servers with one folder would throw each other's copies away. The lock is that
 * of an SQLite file, which the kernel gives back when the process dies, also by kill -9. Throws StoreUnusable.
 */
export function lockFolder(dataFolder: string): () => void {
  mkdirSync(dataFolder, { recursive: true, mode: 0o700 });
  const holderFile = join(dataFolder, 'server.pid');
  const lock = new Libsql(join(dataFolder, 'folder.lock'), { timeout: 250 });
  try {
    lock.prepare('pragma locking_mode = exclusive').all();
    lock.exec('create table if not exists held (pid integer); begin exclusive; delete from held; commit');
  } catch (error) {
    lock.close();
    if ((error as { code?: unknown }).code !== 'SQLITE_BUSY') throw error;
    const pid = readFileSync(holderFile, 'utf8').trim();
    throw new StoreUnusable(
      `${dataFolder} is in use by the server with pid ${pid}: each server needs a RELORA_DATA_FOLDER of its own`,
      { cause: error },
    );
  }
  writeFileSync(`${holderFile}.new`, `${process.pid}\n`);
  renameSync(`${holderFile}.new`, holderFile);
  return () => {
    for (const text of ['pragma locking_mode = normal', 'select count(*) from held'])
      lock.prepare(text).all();
    lock.close();
  };
}
