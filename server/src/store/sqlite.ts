import { existsSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  Kysely,
  sql,
  SqliteDialect,
  SqliteQueryCompiler,
  type SelectModifierNode,
  type SqliteDatabase,
} from 'kysely';
import { makeDataFolder, unusable } from './dataFolder.js';
import type { DatabaseOptions } from './database.js';
import { applicationId, migrations } from './migrations.js';
import type { Schema } from './schema.js';
import { storageFault } from './storageFault.js';
import { Reserve } from './reserve.js';
import { SqliteConnection } from './sqliteConnection.js';
import { isDiskFull, StoreUnusable } from './storeError.js';
import { storeDamage } from './storeDamage.js';

/** Does not wait long for the lock of another process: that is a second server, which should be reported at once. */
const busyTimeoutMs = 250;

/**
 * Locks the folder until the store is destroyed or the process dies: a second server gets StoreUnusable with the holder's pid. A commit is
 * on the disk when it returns (WAL with synchronous=FULL). See openDatabase.
 */
export async function openSqlite(
  dataFolder: string,
  { onStatement, reserveBytes = 0, wholeCheckBytesMax = Infinity }: Omit<DatabaseOptions, 'url'> = {},
): Promise<Kysely<Schema>> {
  const file = join(dataFolder, 'store.db');
  const holderFile = join(dataFolder, 'server.pid');
  makeDataFolder(dataFolder);
  refuseLostStore(dataFolder, file);

  const reserve = new Reserve(join(dataFolder, 'reserve'), reserveBytes);
  let connection: SqliteConnection | undefined;
  try {
    connection = new SqliteConnection(file, { busyTimeoutMs });
    prepareConnection(connection, file, { reserve, wholeCheckBytesMax });
  } catch (error) {
    connection?.close();
    throw explain(error, file, holderFile);
  }
  reserve.keep();
  noteHolder(holderFile);

  const db = new Kysely<Schema>({
    dialect: new UnlockedDialect({ database: asKyselyExpects(connection, reserve) }),
    ...(onStatement ? { log: (event) => onStatement(event.queryDurationMillis / 1000) } : {}),
  });
  // Kysely takes over the connection with its first statement; before that, destroy would not close it.
  await sql`select 1`.execute(db);
  return db;
}

/** Does something that needs a little disk space; on a full disk, tries again with the space of the reserve. */
function withReserve<T>(reserve: Reserve, act: () => T): T {
  try {
    return act();
  } catch (error) {
    if (!isDiskFull(error) || !reserve.release()) throw error;
    return act();
  }
}

/** Only for the error message of a second server: a full disk must not keep the first one from starting. */
function noteHolder(holderFile: string): void {
  try {
    writeFileSync(`${holderFile}.new`, `${process.pid}\n`);
    renameSync(`${holderFile}.new`, holderFile);
  } catch (error) {
    if (storageFault(error) === undefined) throw error;
  }
}

/** A transaction has the only connection, so nothing that it read can change: row locks are not needed, and SQLite has none. */
class UnlockedDialect extends SqliteDialect {
  override createQueryCompiler(): SqliteQueryCompiler {
    return new UnlockedCompiler();
  }
}

class UnlockedCompiler extends SqliteQueryCompiler {
  protected override visitSelectModifier(node: SelectModifierNode): void {
    if (node.modifier === 'Distinct' || node.rawModifier !== undefined) super.visitSelectModifier(node);
  }
}

/** If there are jobs or data sets but no store, it was lost: a new one would forget everything that was acknowledged. */
function refuseLostStore(dataFolder: string, file: string): void {
  if (existsSync(file) && statSync(file).size > 0) return;
  const leftover = ['jobs', 'datasets'].find((name) => {
    const folder = join(dataFolder, name);
    return existsSync(folder) && readdirSync(folder).length > 0;
  });
  if (leftover === undefined) return;
  throw new StoreUnusable(
    `${file} is ${existsSync(file) ? 'empty' : 'missing'}, but ${join(dataFolder, leftover)} is not: restore the file from a backup, ` +
      'or name another RELORA_DATA_FOLDER',
  );
}

function prepareConnection(
  connection: SqliteConnection,
  file: string,
  { reserve, wholeCheckBytesMax }: { reserve: Reserve; wholeCheckBytesMax: number },
): void {
  const pragma = (text: string): unknown => connection.first(`pragma ${text}`);

  // The lock lasts as long as the process, and the kernel frees it even after kill -9: there is nothing to clean up.
  pragma('locking_mode = exclusive');

  const owner = pragma('application_id');
  const version = Number(pragma('user_version'));
  const isEmpty = pragma('schema_version') === 0;
  if (!isEmpty && owner !== applicationId)
    throw new StoreUnusable(`${file} is a database of another program: name another RELORA_DATA_FOLDER`);
  if (version > migrations.length) {
    throw new StoreUnusable(
      `${file} has schema ${version}, this server knows ${migrations.length}: use the newer server that wrote it`,
    );
  }

  const journalMode = withReserve(reserve, () => pragma('journal_mode = wal'));
  if (journalMode !== 'wal')
    throw new StoreUnusable(
      `${file} cannot use a write-ahead log (it is ${String(journalMode)}): network folders cannot hold the store`,
    );
  // After journal_mode, which may change it. FULL syncs the log at every commit; NORMAL would lose the last commits in a power cut.
  connection.exec('pragma synchronous = full; pragma foreign_keys = on');

  const damage = storeDamage(connection, wholeCheckBytesMax);
  if (damage !== null) throw new StoreUnusable(`${file} is damaged (${damage}): restore it from a backup`);

  // One transaction per step: after a crash, either all of it is done or nothing.
  for (const [index, { sqlite }] of migrations.entries()) {
    if (index < version) continue;
    withReserve(reserve, () => {
      try {
        connection.exec('begin immediate');
        connection.exec(
          `${sqlite}; pragma application_id = ${applicationId}; pragma user_version = ${index + 1};`,
        );
        connection.exec('commit');
      } catch (error) {
        if (connection.inTransaction) connection.exec('rollback');
        throw error;
      }
    });
  }

  const synchronous = pragma('synchronous');
  if (synchronous !== 2)
    throw new StoreUnusable(
      `${file} does not sync its commits (synchronous is ${String(synchronous)}, not 2)`,
    );
}

/**
 * `close` first leaves the write-ahead log, which a connection that began exclusively can only leave this way, then the exclusive mode:
 * see SqliteConnection.
 */
function asKyselyExpects(connection: SqliteConnection, reserve: Reserve): SqliteDatabase {
  return {
    prepare(text) {
      // A full disk ends the transaction by itself. A rollback would then fail, and hide the error that names the disk.
      return text === 'rollback' && !connection.inTransaction ? nothingToDo : connection.prepare(text);
    },
    close() {
      try {
        withReserve(reserve, () => {
          for (const text of [
            'pragma journal_mode = delete',
            'pragma locking_mode = normal',
            'select count(*) from sqlite_schema',
          ])
            connection.prepare(text).all();
        });
      } catch (error) {
        // The log keeps everything that was committed, and the next server opens it.
        if (!isDiskFull(error)) throw error;
      }
      connection.close();
    },
  };
}

const nothingToDo: ReturnType<SqliteDatabase['prepare']> = {
  reader: false,
  all: () => [],
  run: () => ({ changes: 0, lastInsertRowid: 0 }),
  iterate: () => [][Symbol.iterator](),
};

function explain(error: unknown, file: string, holderFile: string): unknown {
  if (error instanceof StoreUnusable || !(error instanceof Error)) return error;
  const code = (error as { code?: unknown }).code;
  if (code === 'SQLITE_BUSY') {
    const pid = existsSync(holderFile) ? readFileSync(holderFile, 'utf8').trim() : 'unknown';
    return new StoreUnusable(
      `${file} is in use by the server with pid ${pid}: stop it, or name another RELORA_DATA_FOLDER`,
    );
  }
  return unusable(file, error);
}
